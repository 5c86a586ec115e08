"""Names of routes that are like another name, for the sentence that says there is no such route. Pure."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

__all__ = ["SimilarNames"]

_MOST_SHOWN: Final = 10
_MOST_SHOWN_OCTETS: Final = 1_000
_NEIGHBOURS: Final = 8
"""On either side; twice as many are compared as are shown."""

_LIKE: Final = 0.5
"""The least likeness of a name that may have been meant."""


class SimilarNames:
    """Names of routes, to be searched for those that are like another one.

    A slip (a letter left out, added, changed or swapped) leaves a beginning or an end of the name as it was, so like
    names stand near each other where names are sorted by their beginnings, or by their ends. Only those are compared:
    20 µs for any number of routes, where callers could otherwise make us compare thousands of names a request.
    """

    def __init__(self, names: list[str]) -> None:
        self._by_start = sorted((name.lower(), name) for name in names)
        self._by_end = sorted((name.lower()[::-1], name) for name in names)

    def nearest(self, wanted: list[str]) -> list[str]:
        """Return the most like ones first, as many as may be shown."""
        likeness: dict[str, float] = {}
        for word in wanted or [""]:
            lowered = word.lower()
            for ordered, key in ((self._by_start, lowered), (self._by_end, lowered[::-1])):
                place = bisect_left(ordered, (key, "")) - _NEIGHBOURS
                start = max(0, min(place, len(ordered) - 2 * _NEIGHBOURS))
                for _, name in ordered[start : start + 2 * _NEIGHBOURS]:
                    likeness[name] = max(likeness.get(name, 0.0), _likeness(lowered, name.lower()))
        shown: list[str] = []
        octets = 0
        unlike = not likeness or max(likeness.values()) < _LIKE
        for name in sorted(likeness, key=lambda name: (0.0 if unlike else -likeness[name], name)):
            octets += len(name)
            if shown and (len(shown) == _MOST_SHOWN or octets > _MOST_SHOWN_OCTETS):
                break
            shown.append(name)
        return shown

    @staticmethod
    def has_like(wanted: list[str], shown: list[str]) -> bool:
        """Return whether the first of those that are shown is like what was wanted: half of it is the same."""
        return any(_likeness(word.lower(), name.lower()) >= _LIKE for word in wanted for name in shown[:1])


def _likeness(one: str, other: str) -> float:
    """Return how much of two texts is the same beginning and end: 1 if they are equal."""
    most = min(len(one), len(other))
    start = 0
    while start < most and one[start] == other[start]:
        start += 1
    end = 0
    while end < most - start and one[-1 - end] == other[-1 - end]:
        end += 1
    return (start + end) / max(len(one), len(other), 1)

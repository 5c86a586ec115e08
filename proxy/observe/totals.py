"""What several workers have counted, added up.

A worker's state is text: a line of JSON for each thing that it counts. A line is a list: the kind of the thing, its
name, what was counted of it since the start, and its state now. What was counted is numbers, and lists and dictionaries
of numbers; its sum over all workers, those that have ended among them, is what the sidecar has counted. The state now
(null in the lines of `Totals`) goes with the worker.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

__all__ = ["Totals", "state_line"]


def state_line(kind: str, name: str, counted: object, now: object) -> str:
    """Return one line of a worker's state."""
    return f"{json.dumps([kind, name, counted, now], ensure_ascii=False, separators=(',', ':'))}\n"


class Totals:
    """The sums, by kind and name."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], Any] = {}

    def add(self, line: str | bytes) -> tuple[str, str, Any]:
        """Add what one line has counted; return its kind, its name and its state now."""
        kind, name, counted, now = json.loads(line)
        if counted:
            before = self._counted.get((kind, name))
            self._counted[kind, name] = counted if before is None else _sum(before, counted)
        return kind, name, now

    def get(self, kind: str, name: str) -> Any:
        """Return the sum of one thing; an empty dictionary if nothing was counted."""
        return self._counted.get((kind, name), {})

    def names(self, kind: str) -> list[str]:
        """Return the names of all things of a kind of which something was counted."""
        return [name for of, name in self._counted if of == kind]

    def forget(self, kind: str, names: Collection[str]) -> None:
        """Drop the sums of things that are gone."""
        for name in names:
            self._counted.pop((kind, name), None)

    def lines(self) -> Iterator[str]:
        """Yield the sums as lines."""
        for (kind, name), counted in self._counted.items():
            yield state_line(kind, name, counted, None)


def _sum(one: Any, other: Any) -> Any:
    """Return the sum of two values of the same shape; a key that one lacks counts as zero. May change `one`."""
    if isinstance(one, dict):
        for key, value in other.items():
            one[key] = _sum(one[key], value) if key in one else value
        return one
    if isinstance(one, list):
        return [_sum(first, second) for first, second in zip(one, other, strict=True)]
    return one + other

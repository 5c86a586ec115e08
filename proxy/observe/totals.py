"""What several workers have counted, added up.

A worker's state is text: a line of JSON for each thing that it counts. A line is a list: the kind of the thing, its
name, what was counted of it since the start, and its state now. What was counted is numbers, and lists and dictionaries
of numbers; its sum over all workers, those that have ended among them, is what the sidecar has counted. The state now
(null in the lines of `Totals`) goes with the worker.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from proxy.routes import Route

__all__ = ["AMBIENT", "Totals", "counted_for", "state_line"]

AMBIENT: Final = "ambient"
"""The label in metrics of the account of the credentials themselves."""

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def state_line(kind: str, name: str, counted: object, now: object) -> str:
    """Return one line of a worker's state."""
    return _encode([kind, name, counted, now]) + "\n"


def counted_for(routes: Iterable[Route]) -> set[tuple[str, str]]:
    """Return what is counted because there are these routes: kind and name, of mints the account alone."""
    return {
        named
        for route in routes
        for named in (
            ("route", route.label),
            ("origin", str(route.origin)),
            ("mints", route.impersonate or AMBIENT),
        )
    }


class Totals:
    """The sums, by kind and name."""

    def __init__(self) -> None:
        self._counted: dict[str, dict[str, Any]] = {}

    def add(self, line: str | bytes) -> None:
        """Add what one line has counted."""
        kind, name, counted, _ = json.loads(line)
        if counted:
            of_kind = self._counted.setdefault(kind, {})
            before = of_kind.get(name)
            of_kind[name] = counted if before is None else _sum(before, counted)

    def forget(self, gone: Collection[tuple[str, str]]) -> None:
        """Drop the sums of things that are gone, named as `counted_for` names them."""
        for kind, name in gone:
            self._counted.get(kind, {}).pop(name, None)
        mints = self._counted.get("mints", {})
        for name in [name for name in mints if ("mints", name.rpartition(" ")[2]) in gone]:
            del mints[name]

    def lines(self) -> Iterator[str]:
        """Yield the sums as lines."""
        for kind, of_kind in self._counted.items():
            for name, counted in of_kind.items():
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

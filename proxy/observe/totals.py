"""What several workers have counted, added up.

A worker's state is text: a line of JSON for each thing that it counts. A line is a list: the kind of the thing, its
name, what was counted of it since the start, and its state now. What was counted is numbers, and lists and dictionaries
of numbers; its sum over all workers, those that have ended among them, is what the sidecar has counted. The state now
(null in the lines of `Totals`) goes with the worker.

Names of routes, origins and accounts are labels in metrics, so there must be few, however often workers end: those of
the settings in force, and of hosts that only a wildcard allows a hundred. The others of these share `OTHER`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from proxy.routes import OTHER, UNMATCHED, AllowLists, Route

__all__ = ["AMBIENT", "Totals", "state_line"]

AMBIENT: Final = "ambient"
"""The label in metrics of the account of the credentials themselves."""

_MOST_WILDCARD_HOSTS: Final = 100
"""Hosts that only a wildcard allows with sums of their own."""
_OF_SETTINGS: Final = ("route", "origin", "mints")
"""Kinds of what is counted for routes and deployments."""

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def state_line(kind: str, name: str, counted: object, now: object) -> str:
    """Return one line of a worker's state."""
    return _encode([kind, name, counted, now]) + "\n"


class Totals:
    """The sums, by kind and name."""

    def __init__(self) -> None:
        self._counted: dict[str, dict[str, Any]] = {kind: {} for kind in _OF_SETTINGS}
        self._listed: set[tuple[str, str]] | None = None
        self._allowed = AllowLists()

    def keep(self, routes: Iterable[Route], allowed: AllowLists) -> None:
        """Keep the sums of these routes and allowed deployments; drop those of others, now and when they are added.

        Before the first call, all are kept.
        """
        self._listed = _listed_by(routes, allowed)
        self._allowed = allowed
        for kind in _OF_SETTINGS:
            of_kind = self._counted[kind]
            for name in [name for name in of_kind if not self._kept_name(kind, name)]:
                del of_kind[name]

    def add(self, line: str | bytes) -> None:
        """Add what one line has counted."""
        kind, name, counted, _ = json.loads(line)
        kept = self._kept_name(kind, name) if kind in _OF_SETTINGS else name
        if counted and kept is not None:
            of_kind = self._counted.setdefault(kind, {})
            before = of_kind.get(kept)
            of_kind[kept] = counted if before is None else _sum(before, counted)

    def _kept_name(self, kind: str, name: str) -> str | None:
        """Return the name of the sum to which this belongs; None if it is not to be kept."""
        if self._listed is None or name in (UNMATCHED, OTHER):
            return name
        if (kind, name.rpartition(" ")[2] if kind == "mints" else name) in self._listed:
            return name
        if kind == "mints" or not self._allowed.allows_host(name.removeprefix("https://")):
            return None
        of_kind = self._counted[kind]
        others = sum((kind, other) not in self._listed and other not in (UNMATCHED, OTHER) for other in of_kind)
        return name if name in of_kind or others < _MOST_WILDCARD_HOSTS else OTHER

    def lines(self) -> Iterator[str]:
        """Yield the sums as lines."""
        for kind, of_kind in self._counted.items():
            for name, counted in of_kind.items():
                yield state_line(kind, name, counted, None)


def _listed_by(routes: Iterable[Route], allowed: AllowLists) -> set[tuple[str, str]]:
    """Return what the settings name: kind and name, of mints the account alone."""
    listed = {("mints", account) for account in (*allowed.accounts, *([AMBIENT] if allowed.hosts else []))}
    for route in routes:
        listed |= {("route", route.label), ("origin", str(route.origin)), ("mints", route.impersonate or AMBIENT)}
    for host in allowed.hosts:
        listed |= {("route", f"https://{host}"), ("origin", f"https://{host}")}
    return listed


def _sum(one: Any, other: Any) -> Any:
    """Return the sum of two values of the same shape; a key that one lacks counts as zero. May change `one`."""
    if isinstance(one, dict):
        for key, value in other.items():
            one[key] = _sum(one[key], value) if key in one else value
        return one
    if isinstance(one, list):
        return [_sum(first, second) for first, second in zip(one, other, strict=True)]
    return one + other

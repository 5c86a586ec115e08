"""Ends connections of clients that have reached their greatest age, so that new replicas get their share of requests.

A client keeps its connections, and a balancer of connections does not move them. When they end now and then, the client
opens new ones, and the balancer spreads those over all replicas that there are by then. Each ends at a moment of its
own in the last quarter of the age, so that connections that were opened together do not end together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Ageing", "ConnectionAges"]

_JITTER: Final = 0.25
"""Part of the greatest age within which connections end."""


class Ageing(Protocol):
    """A connection that can end gracefully."""

    @property
    def accepted_at(self) -> float:
        """When it was accepted, as the event loop counts."""

    def retire(self) -> None:
        """End as soon as no exchange is lost by that."""


class ConnectionAges:
    """Retires each connection that is watched when it is old. `random_fraction` returns a number from 0 to 1."""

    def __init__(self, most_seconds: float, random_fraction: Callable[[], float] = random.random) -> None:
        self._most_seconds = most_seconds
        self._random_fraction = random_fraction
        self._timers: dict[Ageing, asyncio.TimerHandle | None] = {}

    @property
    def most_seconds(self) -> float:
        """The greatest age; 0 for none. When it is changed, it also holds for connections that are open."""
        return self._most_seconds

    @most_seconds.setter
    def most_seconds(self, seconds: float) -> None:
        if seconds != self._most_seconds:
            self._most_seconds = seconds
            for connection in list(self._timers):
                self.forget(connection)
                self.watch(connection)

    def watch(self, connection: Ageing) -> None:
        """Retire this connection in time, unless it is forgotten before."""
        timer = None
        if self._most_seconds > 0:
            seconds = self._most_seconds * (1 - _JITTER * self._random_fraction())
            timer = asyncio.get_running_loop().call_at(connection.accepted_at + seconds, connection.retire)
        self._timers[connection] = timer

    def forget(self, connection: Ageing) -> None:
        """Leave this connection alone: it has ended."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

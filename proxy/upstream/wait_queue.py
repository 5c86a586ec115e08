"""Requests that wait for a stream of one origin: each owner in turn, and first come first served within an owner."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Hashable
from typing import TypeAlias

from proxy.upstream.connection import UpstreamConnection

__all__ = ["WaitQueue", "Waiter"]

Waiter: TypeAlias = asyncio.Future[UpstreamConnection]
"""Gets the connection on which a stream is reserved."""


class WaitQueue:
    """The waiters. An owner is the connection of a client (its account), or None."""

    __slots__ = ("_owners", "_tickets")

    def __init__(self) -> None:
        self._owners: dict[Hashable, list[tuple[int, Waiter]]] = {}
        """A heap of tickets and waiters for each owner, in the order of their turns."""
        self._tickets = 0

    def count_owners(self) -> int:
        """Return how many owners have a request that has not given up."""
        return sum(any(not waiter.done() for _, waiter in heap) for heap in self._owners.values())

    def next_ticket(self) -> int:
        """Return a place in an owner's queue, behind all others."""
        self._tickets += 1
        return self._tickets

    def join(self, owner: Hashable, ticket: int, waiter: Waiter) -> None:
        """Wait in the place that `ticket` gives."""
        heapq.heappush(self._owners.setdefault(owner, []), (ticket, waiter))

    def prefer(self, owner: Hashable) -> None:
        """Give the next turn to this owner, who waits."""
        heap = self._owners.pop(owner)
        self._owners = {owner: heap, **self._owners}

    def forget_finished(self, owner: Hashable) -> None:
        """Drop the waiters of this owner that have given up; one behind a waiter that has not stays until that is done.

        Without this they would be kept until the owner's next turn, which may be long in coming.
        """
        heap = self._owners.get(owner)
        while heap and heap[0][1].done():
            heapq.heappop(heap)
        if not heap:
            self._owners.pop(owner, None)

    def first(self) -> Waiter | None:
        """Return the waiter whose turn it is, None if there is none; those that have given up are dropped."""
        while self._owners:
            owner = next(iter(self._owners))
            self.forget_finished(owner)
            if heap := self._owners.get(owner):
                return heap[0][1]
        return None

    def take_first(self) -> None:
        """Remove the waiter that `first` has returned; the next turn is that of another owner."""
        owner, heap = next(iter(self._owners.items()))
        heapq.heappop(heap)
        del self._owners[owner]
        if heap:
            self._owners[owner] = heap

    def take_all(self) -> list[Waiter]:
        """Remove and return all waiters, those that have given up included."""
        owners, self._owners = self._owners, {}
        return [waiter for heap in owners.values() for _, waiter in heap]

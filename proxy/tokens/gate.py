"""Limits how many calls run at a time. Discoveries get half of the places, so that other requests never wait for them.

A discovery wants a new token each time. Without this, a client that asks for discoveries of many services would occupy
all calls to Google, and the tokens of all others would wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

__all__ = ["Gate", "mints_for_discovery"]

mints_for_discovery: Final = ContextVar("mints_for_discovery", default=False)
"""True in the task of a mint that only discoveries wait for."""


class Gate:
    """Lets `places` calls run at a time, two at least, and at most half as many of them for discoveries.

    Waiting calls get a place in the order of their arrival.
    """

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._for_discoveries = asyncio.Semaphore(places // 2)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the time of a `with`."""
        if not mints_for_discovery.get():
            async with self._places:
                yield
            return
        async with self._for_discoveries, self._places:
            yield

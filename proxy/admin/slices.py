"""Work in slices: what takes long is done a little at a time, and the event loop goes on in between.

A scrape of thousands of routes is megabytes. A thread would not do: it holds the interpreter for 5 ms at a time.
However many clients ask at once, there is one slice in a turn of the loop.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakKeyDictionary

from aiohttp import web

__all__ = ["SLICE_SECONDS", "collector_paused", "in_slices", "send_in_slices"]

SLICE_SECONDS: Final = 0.00025
"""How long the event loop is kept at a time; a piece is not divided."""

_MOST_OCTETS: Final = 1 << 15
"""How much is handed to the transport at a time."""


_pauses: Final[list[None]] = []


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector from running in this context, which may be entered several times at once.

    For work that makes tens of thousands of objects and frees all of them again: looking at them takes the collector
    ten milliseconds and more, and finds nothing.
    """
    _pauses.append(None)
    gc.disable()
    try:
        yield
    finally:
        _pauses.pop()
        if not _pauses:
            gc.enable()


_turns: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()


async def in_slices(pieces: Iterable[str]) -> AsyncIterator[str]:
    """Yield the text of `pieces`, several of them together; the event loop runs between two yields."""
    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    left = iter(pieces)
    complete = False
    while not complete:
        async with turn:
            text, complete = _slice(left)
            if not complete:
                await asyncio.sleep(0)
        if text or not complete:
            yield text


def _slice(left: Iterator[str]) -> tuple[str, bool]:
    """Return the text of the next pieces, and whether they are the last."""
    joined: list[str] = []
    size = 0
    until = time.perf_counter() + SLICE_SECONDS
    for piece in left:
        joined.append(piece)
        size += len(piece)
        if size >= _MOST_OCTETS or time.perf_counter() >= until:
            return "".join(joined), False
    return "".join(joined), True


async def send_in_slices(request: web.Request, pieces: Iterable[str], content_type: str) -> web.StreamResponse:
    """Answer with the text of `pieces`, with status 200. Nothing is rendered for HEAD, or while the client is slow."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    if request.method != "HEAD":
        async for text in in_slices(pieces):
            if text:
                await response.write(text.encode())
    await response.write_eof()
    return response

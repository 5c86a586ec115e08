"""Named pipes, at which a test and a program wait for each other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from io import FileIO
from pathlib import Path
from typing import Any

__all__ = ["open_with"]


async def open_with(ended: Coroutine[Any, Any, object], pipe: Path, mode: str) -> FileIO:
    """Open a named pipe, to read ("r") or write ("w"); returns when a program has opened its other end.

    `ended` returns when that program has ended: AssertionError if it opens nothing. No thread waits after that, nor
    after a cancellation.
    """
    ending = asyncio.ensure_future(ended)  # noqa: TID251 - cancelled below
    opening = asyncio.ensure_future(asyncio.to_thread(FileIO, pipe, mode))  # noqa: TID251 - awaited below
    try:
        await asyncio.wait({ending, opening}, return_when=asyncio.FIRST_COMPLETED)
        assert opening.done(), f"the program ended before it opened {pipe}"
        return opening.result()
    finally:
        ending.cancel()
        if not opening.done():
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # both ends: what waits for one goes on
            (await opening).close()

"""A look every few seconds whether the credentials, and the clock, are still the same, while tokens are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

__all__ = ["CredentialWatch", "Watched"]

log: Final = structlog.get_logger("tokens")

_LOOK_SECONDS: Final = 3.0
_STEP_SECONDS: Final = 5.0


class Watched(Protocol):
    """Credentials that can change behind our back."""

    on_change: Callable[[int, str], None] | None
    """Called as soon as a change shows, in a look or in a mint: the number of the new generation, and the new ones in
    words."""

    async def look(self, *, tokens_kept: bool) -> None:
        """Look whether they are still the same; raises nothing.

        Nobody outside of this machine is asked unless there are tokens to be dropped.
        """


class CredentialWatch:
    """Watches from `start` on, as long as `needed` says so.

    `tokens_kept` says whether any token is kept. `clock_was_set` is called when the wall clock made a step: what was
    said of a token's expiry is wrong then.
    """

    def __init__(
        self,
        watched: Watched,
        *,
        needed: Callable[[], bool],
        tokens_kept: Callable[[], bool],
        clock: Callable[[], float],
        clock_was_set: Callable[[], None],
    ) -> None:
        self._watched = watched
        self._needed = needed
        self._tokens_kept = tokens_kept
        self._clock = clock
        self._clock_was_set = clock_was_set
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch, if that is not done already."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Stop, and wait for the end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        offset = self._clock() - time.monotonic()
        try:
            while self._needed():
                await self._watched.look(tokens_kept=self._tokens_kept())
                await asyncio.sleep(_LOOK_SECONDS)
                before, offset = offset, self._clock() - time.monotonic()
                # A machine that slept looks the same, and costs a mint without need.
                if abs(offset - before) > _STEP_SECONDS:
                    log.warning(
                        "the clock of this machine was set: new tokens are minted", by_seconds=round(offset - before)
                    )
                    self._clock_was_set()
        finally:
            self._task = None

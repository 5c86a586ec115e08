"""Checks every few seconds whether the credentials, and the clock, are still the same, while tokens are cached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

__all__ = ["ChangingCredentials", "CredentialPoller"]

log: Final = structlog.get_logger("tokens")

_POLL_SECONDS: Final = 3.0
_STEP_SECONDS: Final = 5.0


class ChangingCredentials(Protocol):
    """Credentials that can change at any time: a file is replaced, or the account of a metadata server."""

    on_change: Callable[[int, str], None] | None
    """Called when a check or a mint finds a change, with the number of the new generation and the new credentials in
    words."""

    async def check_for_change(self, *, tokens_kept: bool) -> None:
        """Check whether the credentials have changed; raises nothing.

        No other machine is asked unless there are tokens to be dropped.
        """


class CredentialPoller:
    """Polls from `start` on, as long as `needed` returns True.

    `tokens_kept` returns whether any token is cached. `clock_was_set` is called with the seconds of a step that
    the wall clock made: the expiry by this machine's clock is wrong then.
    """

    def __init__(
        self,
        credentials: ChangingCredentials,
        *,
        needed: Callable[[], bool],
        tokens_kept: Callable[[], bool],
        clock: Callable[[], float],
        clock_was_set: Callable[[float], None],
    ) -> None:
        self._credentials = credentials
        self._needed = needed
        self._tokens_kept = tokens_kept
        self._clock = clock
        self._clock_was_set = clock_was_set
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to poll; no effect while polling."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._poll())

    async def close(self) -> None:
        """Stop, and wait for the end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        offset = self._clock() - time.monotonic()
        try:
            while self._needed():
                await self._credentials.check_for_change(tokens_kept=self._tokens_kept())
                await asyncio.sleep(_POLL_SECONDS)
                before, offset = offset, self._clock() - time.monotonic()
                # A machine that slept looks the same, and costs a mint without need.
                step = offset - before
                if abs(step) > _STEP_SECONDS:
                    log.warning("the clock of this machine was set: new tokens are minted", by_seconds=round(step))
                    self._clock_was_set(step)
        finally:
            self._task = None

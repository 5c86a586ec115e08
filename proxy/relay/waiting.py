"""The one slow path: exchanges whose token or upstream connection is not there yet, a task each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from proxy.errors import Failure
from proxy.routing import Origin
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.slot import Slot
from proxy.wire import Channel, StreamSource

if TYPE_CHECKING:
    from proxy.relay.carrier import Carrier
    from proxy.relay.forwarder import Forwarder, Post

__all__ = ["Pool", "Tokens", "Waiting"]


class Tokens(Protocol):
    """Where tokens come from."""

    def slot(self, key: TokenKey) -> Slot:
        """Return the slot of this key."""

    async def token(self, key: TokenKey) -> Token:
        """Return a usable token; mint one if need be."""

    async def fresh(self, key: TokenKey) -> Token:
        """Mint one, whatever is cached."""

    def is_current(self, token: Token) -> bool:
        """Return whether the token was minted from the credentials that there are now."""

    def reject(self, token: Token) -> None:
        """Cloud Run did not take this token."""


class Pool(Protocol):
    """Where upstream connections come from."""

    def line(self, origin: Origin) -> StreamSource:
        """Return where connections to this origin are taken from."""

    def acquire(self, origin: Origin) -> Awaitable[Channel]:
        """Wait for one; its stream must be opened before the next await."""


class Waiting:
    """Fetches what an exchange lacks, and starts it then."""

    def __init__(self, forwarder: Forwarder, tokens: Tokens, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._forwarder = forwarder
        self._tokens = tokens
        self._pool = pool
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._tasks)

    def add(self, carrier: Carrier, post: Post, token: Token | None) -> None:
        """Start the carrier later, with this token if it is there; when its exchange ends before, it cancels that."""
        task = self._loop.create_task(self._start(carrier, post, token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        carrier.cancel_start = task.cancel

    async def close(self) -> None:
        """Give up every exchange that has not been started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, carrier: Carrier, post: Post, token: Token | None) -> None:
        try:
            try:
                while True:
                    if post.slot is not None and token is None:
                        fetch = self._tokens.fresh if carrier.discovery else self._tokens.token
                        token = await fetch(post.key)
                    connection = await self._pool.acquire(post.route.origin)
                    if token is None or self._tokens.is_current(token):
                        break
                    token = None  # The credentials changed while it waited for a stream.
            except Failure as failure:
                carrier.cancel_start = None
                carrier.fail(failure)
                return
            carrier.cancel_start = None
            self._forwarder.launch(carrier, post, connection, token)
        except Exception as exc:  # noqa: BLE001 - the caller must not be left waiting, whatever it was
            carrier.cancel_start = None
            self._loop.call_exception_handler(
                {"message": "a defect showed while a request was sent on its way", "exception": exc}
            )
            carrier.broken()

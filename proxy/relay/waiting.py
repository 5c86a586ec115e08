"""The slow path: one task for each exchange whose token or upstream stream is not available yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final, TypeAlias, TypeVar

from proxy.errors import Failure
from proxy.relay.context import RouteContext
from proxy.relay.exchange import Exchange
from proxy.routes import Origin
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.pool import Pool

__all__ = ["Start", "Waiting"]


_HELD_BACK_SECONDS: Final = 0.1
"""Longer than the way of a reset that is sent right behind its request."""

_Fetched = TypeVar("_Fetched")
_Tell: TypeAlias = Callable[[Exchange, float, Failure | None], None]


Start: TypeAlias = Callable[[Exchange, RouteContext, UpstreamConnection, Token | None], None]
"""Starts an exchange for which token and connection are available."""


class Waiting:
    """Waits for what an exchange lacks, and starts it then."""

    def __init__(self, tokens: TokenSource, pool: Pool, loop: asyncio.AbstractEventLoop, start: Start) -> None:
        self._tokens = tokens
        self._pool = pool
        self._loop = loop
        self._start = start
        self._tasks: set[asyncio.Task[None]] = set()
        self._retaining: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """How many exchanges wait."""
        return len(self._tasks)

    def add(self, exchange: Exchange, context: RouteContext, token: Token | None) -> None:
        """Start the exchange later, with this token if there is one, unless it is over, or answered, before."""
        self._wait(exchange, partial(self._fetch, exchange, context, token))

    def hold_back(self, exchange: Exchange, dispatch: Callable[[Exchange], None]) -> None:
        """Dispatch the exchange after a moment. One that is cancelled before does not reach the upstream."""
        self._wait(exchange, lambda: asyncio.sleep(_HELD_BACK_SECONDS, partial(dispatch, exchange)))

    def retain(self, keys: Collection[TokenKey], origins: Collection[Origin]) -> None:
        """Drop the tokens of all other keys, and the connections to all other origins."""
        self._pool.retain(origins)
        task = self._loop.create_task(self._tokens.retain(keys))
        self._retaining.add(task)
        task.add_done_callback(self._retaining.discard)

    async def close(self) -> None:
        """Cancel the tasks of all exchanges that have not been started."""
        tasks = [*self._tasks, *self._retaining]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wait(self, exchange: Exchange, wait: Callable[[], Awaitable[Callable[[], None]]]) -> None:
        """Do what `wait` results in, in a task that the exchange can cancel until then."""
        task = self._loop.create_task(self._run(exchange, wait))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.cancel_start = task.cancel

    async def _run(self, exchange: Exchange, wait: Callable[[], Awaitable[Callable[[], None]]]) -> None:
        try:
            begin = await wait()
            exchange.cancel_start = None
            begin()
        except Exception as exc:  # noqa: BLE001 - the client must get an answer
            exchange.cancel_start = None
            self._loop.call_exception_handler(
                {"message": "internal error while a request was dispatched", "exception": exc}
            )
            exchange.on_internal_error()

    async def _fetch(self, exchange: Exchange, context: RouteContext, token: Token | None) -> Callable[[], None]:
        """Return what starts the exchange, or fails it."""
        try:
            while True:
                if context.slot is not None and token is None:
                    fetch = self._tokens.mint_uncached if exchange.kind.interactive else self._tokens.token
                    token = await self._timed(fetch(context.key), exchange, context.observers.token_awaited)
                wanted = self._pool.acquire(context.route.origin, exchange.owner())
                if context.pool.ready() is not None:
                    connection = await wanted
                else:
                    connection = await self._timed(wanted, exchange, context.observers.connection_awaited)
                if token is None or self._tokens.is_current(token):
                    return partial(self._start, exchange, context, connection, token)
                token = None  # The credentials changed while it waited for a stream.
        except Failure as failure:
            # Its traceback refers to this frame: a failure that is remembered would keep the exchange in memory.
            return partial(exchange.fail, failure.with_traceback(None))

    async def _timed(self, awaited: Awaitable[_Fetched], exchange: Exchange, tell: _Tell) -> _Fetched:
        """Tell observers how long this takes, and return its result."""
        began = self._loop.time()
        try:
            fetched = await awaited
        except Failure as failure:
            tell(exchange, self._loop.time() - began, failure)
            raise
        tell(exchange, self._loop.time() - began, None)
        return fetched

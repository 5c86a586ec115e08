"""A connector, and peers on real sockets that it connects to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.portable.engine import PortableEngine
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.connector import Connector

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def connector(make: EngineFactory = PortableEngine, **options: Any) -> Connector:
    return Connector(
        lambda handler: make(client=True, limits=Limits(), handler=handler),
        Budget(1 << 20),
        Flusher(asyncio.get_running_loop()),
        timing=Timing(),
        **options,
    )


async def left(connection: UpstreamConnection) -> None:
    """Close a connection and see it gone."""
    connection.retire("the test is over")
    await connection.gone


@asynccontextmanager
async def listening(conversation: Conversation) -> AsyncIterator[int]:
    """Listen on a free port and have this conversation on each connection; what it leaves open is closed."""
    over: list[asyncio.Event] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.append(asyncio.Event())
        try:
            await conversation(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            over[-1].set()

    accepting = await asyncio.start_server(converse, "127.0.0.1", 0)
    async with accepting:
        yield accepting.sockets[0].getsockname()[1]
        for event in over:
            await event.wait()

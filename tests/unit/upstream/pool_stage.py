"""A pool, the service that it dials, and requests that wait for streams."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from proxy.errors import Failure, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.events import StreamId
from proxy.http2.portable.engine import PortableEngine
from proxy.routes import Origin
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.pool import Pool
from tests.support.loops import loop_idle
from tests.support.peers.raw import REQUEST, RESPONSE
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.stage import ORIGIN, Counts, Far, Service

REFUSED = UpstreamConnectFailed("https://greeter.example cannot be connected to (Connection refused)")


class PoolStage:
    """A pool, the service that it dials, and requests that wait for a stream and then open it."""

    def __init__(self, make: EngineFactory = PortableEngine, **options: Any) -> None:
        self.service = Service(make, options.pop("timing", None))
        self.counts = Counts()
        self.pool = Pool(self.service.connect, self.counts, **options)
        self.opened: list[str] = []
        """The names of requests that have a stream, in order."""

    def task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work)

    async def _request(
        self, name: str, origin: Origin, receiver: RecordingReceiver
    ) -> tuple[UpstreamConnection, StreamId]:
        connection = self.pool.origin_pool(origin).ready() or await self.pool.acquire(origin)
        stream = connection.open(REQUEST, True, receiver)
        receiver.stream_id = stream.id
        self.opened.append(name)
        return connection, stream.id

    async def ask(
        self, *names: str, origin: Origin = ORIGIN, receiver: RecordingReceiver | None = None
    ) -> list[asyncio.Task[Any]]:
        """Let requests come, and give them time."""
        tasks = [self.task(self._request(name, origin, receiver or RecordingReceiver())) for name in names]
        await loop_idle()
        return tasks

    async def close(self) -> None:
        await self.pool.close(linger_seconds=1.0)
        await loop_idle()
        assert all([await far.gone() for far in self.service.fars])
        assert not self.pool.connections
        assert self.counts.opened == self.counts.closed


def finish(far: Far, stream: int) -> None:
    """Answer a request."""
    far.send(far.headers(stream, RESPONSE, end=True))


async def failures_of(tasks: list[asyncio.Task[Any]]) -> Counter[str]:
    """Return how many of these failed with which code."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [result for result in results if isinstance(result, Failure)]
    assert len(failures) == len(results), results
    return Counter(failure.code for failure in failures)

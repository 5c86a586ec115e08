"""A receiver of OpenTelemetry's protocol over HTTP, which decodes what an exporter really sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Receiver", "attributes_of", "receiver"]


@dataclass
class Receiver:
    """What has been received."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, object]] = field(default_factory=list)
    requests: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, body: bytes) -> None:
        """Decode one request."""
        message = ExportTraceServiceRequest.FromString(body)
        self.requests += 1
        for resource in message.resource_spans:
            self.resources.append(attributes_of(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans += scope.spans
        self._changed.set()

    async def received(self, count: int) -> list[Span]:
        """Return the first `count` spans, once there are so many."""
        while len(self.spans) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.spans[:count]


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, object]:
    """Return attributes as values of Python."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Run a receiver on a free port."""
    received = Receiver()

    async def traces(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        received.take(await request.read())
        return web.Response(body=b"", content_type="application/x-protobuf")

    application = web.Application()
    application.router.add_post("/v1/traces", traces)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        received.url = f"http://{host}:{port}"
        yield received
    finally:
        await runner.cleanup()

"""Sends one request without content on an upstream connection, and collects the response."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.cloud_run.response import Response
from proxy.errors import Failure, Internal, UpstreamRefusedStream, UpstreamReset
from proxy.http2.engine import Stream, StreamReceiver
from proxy.http2.events import ErrorCode, Fields, error_code_name
from proxy.observe.explanation import explain_broken_rule
from proxy.upstream.connection import UpstreamConnection

__all__ = ["MAX_OCTETS", "send_request"]

MAX_OCTETS: Final = 8 << 20
"""Maximum size of a response; manifests with schemas have hundreds of KiB."""


async def send_request(connection: UpstreamConnection, fields: Fields, timeout_seconds: float) -> Response:
    """Return the response to this request.

    Raises TimeoutError, UpstreamReset, UpstreamRefusedStream, UpstreamConnectionLost, or Internal for a bug of ours.
    """
    collector = _Collector(asyncio.get_running_loop())
    collector.stream = stream = connection.open(fields, True, collector)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await collector.response
    finally:
        stream.receiver = None
        if not collector.ended:
            stream.reset(ErrorCode.CANCEL, False)


class _Collector(StreamReceiver):
    """Collects one response."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stream: Stream | None = None
        self.ended = False
        self.response: asyncio.Future[Response] = loop.create_future()
        self._fields: Fields = []
        self._body = bytearray()

    def on_interim(self, fields: Fields) -> None:
        """Ignore a 1xx head."""

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        self._fields = fields
        if end_stream:
            self._finish()

    def on_response_data(self, data: bytes, end_stream: bool) -> None:
        if self.stream is not None:
            self.stream.acknowledge(len(data))
        self._body += data
        if end_stream:
            self._finish()
        elif len(self._body) > MAX_OCTETS:
            self._fail(
                UpstreamReset(
                    f"the response has more than {MAX_OCTETS >> 20} MiB, so it is no manifest",
                    remedy="check the url of the route, its path included",
                ),
                over=False,
            )

    def on_response_trailers(self, fields: Fields) -> None:
        self._finish()

    def on_response_reset(self, code: int, by_peer: bool) -> None:
        if by_peer and code == ErrorCode.REFUSED_STREAM:
            self.on_unprocessed(False)
        elif code == ErrorCode.NO_ERROR and self._fields:
            self._finish()
        elif not by_peer and self.stream is not None:
            self._fail(explain_broken_rule(self.stream.refusal))
        else:
            name = error_code_name(code)
            remedy = "the container failed, or does not speak HTTP/2 to its end: look at its log"
            self._fail(UpstreamReset(f"the service reset the stream ({name})", remedy=remedy))

    def on_unprocessed(self, spent: bool) -> None:
        self._fail(
            UpstreamRefusedStream(
                "the service refused the stream without processing it",
                remedy="check again; if it stays, see whether the service has instances that start",
            )
        )

    def on_connection_lost(self, failure: Failure) -> None:
        self._fail(failure)

    def on_request_sent(self, octets: int) -> None:
        """Do nothing: the request has no content."""

    def on_internal_error(self) -> bool:
        self._fail(Internal("the check failed on this response: a bug of the sidecar", remedy="please report it"))
        return True

    def _finish(self) -> None:
        self.ended = True
        if not self.response.done():
            named = {name.decode("latin-1"): value.decode("latin-1") for name, value, _ in self._fields}
            self.response.set_result(Response(int(named.pop(":status")), named, bytes(self._body)))

    def _fail(self, failure: Failure, *, over: bool = True) -> None:
        self.ended = over
        if not self.response.done():
            self.response.set_exception(failure)

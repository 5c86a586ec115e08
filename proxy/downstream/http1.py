"""HTTP/1.1 callers, through Hypercorn's ASGI: curl, probes, and deployments registered with `--use-http1.1`.

The same exchanges do the work; this module is their downstream stream for one request. HTTP/1.1 knows no reset: before
the response began it is answered with 502, afterwards the connection is cut before the response is complete, which
every HTTP/1.1 client can tell from a clean end.

Back-pressure does not go through ASGI, whose queue deadlocks when an application ends before its request does: the
queue is unbounded, and the connection stops reading while its `Gate` is shut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from proxy.connection.budget import Budget
from proxy.connection.protocol import RequestAcceptor
from proxy.downstream.fields import from_http1
from proxy.downstream.hosts import HostRules, parse_authority
from proxy.errors import BrowserRefused, UpstreamReset
from proxy.http2.engine import Stream
from proxy.http2.events import ErrorCode, Fields
from proxy.restate import RequestKind, local_reply

__all__ = ["Gate", "Http1Stream", "Message", "Receive", "Send", "refuse_pages"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Gate: TypeAlias = asyncio.Event
"""Set while more of a request may be read from the socket."""

_WINDOW_OCTETS: Final = 256 << 10
"""How much of a request may be under way; more is not read from the socket."""

_LINGER_SECONDS: Final = 1.0
"""How long the end of a response waits for the end of its request. To close a socket of which something is still unread
resets the connection, and the client may lose what it has not read of the response (RFC 9112, 9.6)."""

_STREAM_ID: Final = 1


class Http1Stream(Stream):
    """One HTTP/1.1 request and its response, as a stream that has no others beside it."""

    def __init__(self, acceptor: RequestAcceptor, receive: Receive, send: Send, gate: Gate, budget: Budget) -> None:
        super().__init__()
        self.id = _STREAM_ID
        self._acceptor = acceptor
        self._receive = receive
        self._send = send
        self._gate = gate
        self._budget = budget
        self._under_way_octets = 0
        self._outgoing: deque[Message] = deque()
        self._queued_octets = 0
        self._waiting = asyncio.Event()
        self._began = False
        self._read_all = asyncio.Event()
        self._is_head_request = False
        self._http_version = b"1.1"

    async def run(self, scope: Message) -> None:
        """Carry the exchange; returns when the response is complete, or cut."""
        method = scope["method"].encode("ascii")
        self.method = method
        self.path = _target(scope)
        self.has_watched = True  # nobody has looked
        self._http_version = scope["http_version"].encode("ascii")
        self._is_head_request = method == b"HEAD"
        lines = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        # Framing of HTTP/1.1 requests: without one of these there is no content (RFC 9112, 6.3).
        bare = not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in lines)
        if bare:
            self._read_all.set()
        try:
            self._acceptor.accept(self, from_http1(method, self.path, lines), bare)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                await self._write()
                reading.cancel()
        finally:
            self._cancel()
            self._budget.change(-self._queued_octets)
            self._gate.set()

    # ---- for the exchange

    def http_version(self) -> bytes:
        """Return `1.1` or `1.0`."""
        return self._http_version

    def send_head(self, fields: Fields, end_stream: bool) -> None:
        """Queue a final head; interim ones have no way through ASGI over HTTP/1.1."""
        status = int(fields[0][1])
        if status < 200:
            return
        self._began = True
        lines = [(name, value) for name, value, _ in fields if not name.startswith(b":")]
        self._put({"type": "http.response.start", "status": status, "headers": lines})
        if end_stream:
            self.send_data(b"", True)

    def send_data(self, data: bytes, end_stream: bool) -> None:
        """Queue content."""
        self._queued_octets += len(data)
        self._budget.change(len(data))
        self._put({"type": "http.response.body", "body": data, "more_body": not end_stream})

    def send_trailers(self, fields: Fields) -> None:
        """End the response: Hypercorn sends no trailers over HTTP/1.1."""
        self.send_data(b"", True)

    def reset(self, code: int, after_data: bool) -> None:
        """Answer 502 if nothing has been sent, else cut the connection."""
        if self._began:
            self._put({"type": "cut"})
            return
        name = ErrorCode(code).name if code in ErrorCode.__members__.values() else hex(code)
        failure = UpstreamReset(f"the upstream reset the stream ({name})")
        reply = local_reply(failure, RequestKind.OTHER, random_fraction=0.0)
        self._began = True
        self._put({"type": "http.response.start", "status": reply.status, "headers": reply.fields})
        self.send_data(reply.body, True)

    def acknowledge(self, octets: int) -> None:
        """Let so many more octets of the request be read."""
        self._under_way_octets -= octets
        if self._under_way_octets < _WINDOW_OCTETS:
            self._gate.set()

    # ---- both directions

    def _put(self, message: Message) -> None:
        self._outgoing.append(message)
        self._waiting.set()

    def _cancel(self) -> None:
        """The client is gone: tell the exchange, unless it is over."""
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.on_request_reset(ErrorCode.CANCEL, True)

    async def _read(self) -> None:
        """Pass the request on; what comes of it after the exchange is over is dropped."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._cancel()
                self._read_all.set()
                self._put({"type": "cut"})
                return
            data, more = message.get("body", b""), message.get("more_body", False)
            if (data or not more) and not self._read_all.is_set() and self.receiver is not None:
                self._under_way_octets += len(data)
                self.receiver.on_request_data(bytes(data), not more)
                if self._under_way_octets >= _WINDOW_OCTETS and self.receiver is not None:
                    self._gate.clear()
            if not more:
                self._read_all.set()
                self._gate.set()  # nothing more is acknowledged

    async def _write(self) -> None:
        while True:
            while not self._outgoing:
                self._waiting.clear()
                await self._waiting.wait()
            message = self._outgoing.popleft()
            if message["type"] == "cut":
                return  # Hypercorn closes the connection of an application that returns half way
            octets = len(message.get("body", b""))
            if self._is_head_request and octets:
                message = {**message, "body": b""}
            if message.get("more_body") is False:
                await self._finish(message)
                return
            await self._send(message)
            self._queued_octets -= octets
            self._budget.change(-octets)
            if octets and self.receiver is not None:
                self.receiver.on_response_sent(octets)

    async def _finish(self, message: Message) -> None:
        """Send the last of the response; its end waits for a request that has not ended."""
        if not self._read_all.is_set():
            await self._send({**message, "more_body": True})
            message = {**message, "body": b""}
            if self.receiver is None:
                self._gate.set()
            try:
                async with asyncio.timeout(_LINGER_SECONDS):
                    await self._read_all.wait()
            except TimeoutError:
                pass
        await self._send(message)


async def refuse_pages(scope: Message, send: Send, allowed_hosts: frozenset[str] = frozenset()) -> bool:
    """Answer a request that a web page makes, and return whether it was one.

    Browsers reach loopback, speak HTTP/1.1 without TLS, and name the page in `origin` (Fetch, 3.1) or say
    in `sec-fetch-site` that there is one (Fetch Metadata, 2.3); `none` there is a person who typed the address. Restate
    and its like send neither. Of a page whose own name its owner had lead to loopback (DNS rebinding), a browser says
    nothing but that name; `hosts` says which names are not taken for one.
    """
    fields = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
    if b"origin" in fields or fields.get(b"sec-fetch-site", b"none") != b"none":
        refusal = BrowserRefused(
            "this is for Restate, not for web pages: what they ask would be signed with our identity"
        )
    elif not _may_call_by(fields.get(b"host", b""), HostRules(scope["server"], allowed_hosts)):
        refusal = BrowserRefused(
            "the Host of this request could be a web page's own name that leads to loopback (DNS rebinding): "
            "call 127.0.0.1 or localhost, or list the name in allowed_hosts (--allowed-hosts) if it is yours"
        )
    else:
        return False
    reply = local_reply(refusal, RequestKind.OTHER, random_fraction=0.0)
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})
    return True


def _may_call_by(host: bytes, rules: HostRules) -> bool:
    try:
        return not host or rules.allows(parse_authority(host)[0])
    except ValueError:
        return False


def _target(scope: Message) -> bytes:
    """Return path and query."""
    path: bytes = scope["raw_path"]
    return path + (b"?" + scope["query_string"] if scope["query_string"] else b"")

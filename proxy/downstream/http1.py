"""HTTP/1.1 requests, through Hypercorn's ASGI: curl, probes, and deployments registered with `--use-http1.1`.

`Http1Stream` is the downstream stream of an exchange for one request. HTTP/1.1 has no resets: before the response
begins, a reset becomes a 502; afterwards, the connection is closed before the response is complete, which every
HTTP/1.1 client distinguishes from a clean end. For HTTP/1.0, the connection is reset, which Unix sockets cannot be.

Back-pressure does not use ASGI's queue, which deadlocks if an application ends before its request does. The queue is
unbounded, and the connection stops reading while its `Gate` is cleared.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from proxy.connection.budget import Budget, memory_is_short
from proxy.connection.protocol import RequestAcceptor
from proxy.downstream.fields import from_http1
from proxy.downstream.hosts import HostRules, parse_authority
from proxy.errors import BrowserRefused, Failure, Internal, UpstreamReset
from proxy.http2.engine import Stream
from proxy.http2.events import ErrorCode, Fields, error_code_name
from proxy.http2.policy.fields import section_octets
from proxy.http2.policy.sending import JOINED_OCTETS
from proxy.restate import RequestKind, local_reply

__all__ = ["Gate", "Http1Stream", "Message", "Receive", "Send", "browser_refusal"]

Message: TypeAlias = MutableMapping[str, Any]
"""A scope, or an event, of ASGI."""
Receive: TypeAlias = Callable[[], Awaitable[Message]]
"""Returns the next event of the request."""
Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""Sends an event of the response."""
Gate: TypeAlias = asyncio.Event
"""Set while more of a request may be read from the socket."""

_WINDOW_OCTETS: Final = 256 << 10
"""How much of a request may be unacknowledged; more is not read from the socket."""

_LINGER_SECONDS: Final = 1.0
"""How long the end of a response waits for the end of its request. Closing a socket with unread data resets the
connection, and the client may lose the rest of the response (RFC 9112, 9.6)."""

_NO_CONTENT: Final = 204
_STREAM_ID: Final = 1
_ABORT: Final = "abort"


class Http1Stream(Stream):
    """One HTTP/1.1 request and its response, as the only stream of a connection."""

    def __init__(self, acceptor: RequestAcceptor, receive: Receive, send: Send, gate: Gate, budget: Budget) -> None:
        super().__init__()
        self.id = _STREAM_ID
        self._acceptor = acceptor
        self._receive = receive
        self._send = send
        self._gate = gate
        self._budget = budget
        self.account = budget.open_account(self._give_up)
        """What this exchange holds."""
        self._unacknowledged_octets = 0
        self._outgoing: deque[Message] = deque()
        self._queued_octets = 0
        self._enqueued = asyncio.Event()
        self._head_sent = False
        self._request_complete = asyncio.Event()
        self._is_head_request = False
        self._http_version = b"1.1"

    async def run(self, scope: Message, refusal: Failure | None = None) -> None:
        """Serve the exchange, or answer with the refusal; returns when the response is complete or aborted."""
        method = scope["method"].encode("ascii")
        self.method = method
        query = scope["query_string"]
        self.path = scope["raw_path"] + (b"?" + query if query else b"")
        self.has_watched = True  # possibly: no engine has looked at the names
        self._http_version = scope["http_version"].encode("ascii")
        self._is_head_request = method == b"HEAD"
        lines = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        # A request without either field has no content (RFC 9112, 6.3).
        without_content = not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in lines)
        if without_content:
            self._request_complete.set()
        fields = from_http1(method, self.path, lines)
        self.head_octets = section_octets(fields)
        try:
            if refusal is not None:
                self._reply_locally(refusal)
            else:
                self._call(self._acceptor.accept, self, fields, without_content, self.account)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                await self._write()
                reading.cancel()
        finally:
            self._cancel()
            self._budget.close_account(self.account)
            self._gate.set()

    # ---- for the exchange

    def http_version(self) -> bytes:
        """Return `1.1` or `1.0`."""
        return self._http_version

    def send_head(self, fields: Fields, end_stream: bool) -> None:
        """Queue a final head; interim ones are dropped, because ASGI over HTTP/1.1 cannot send them."""
        status = int(fields[0][1])
        if status < 200:
            return
        lines = [(name, value) for name, value, _ in fields if not name.startswith(b":")]
        if status == _NO_CONTENT:
            lines = [line for line in lines if line[0] != b"content-length"]  # which it must not have (RFC 9110, 8.6)
        self._head_sent = True
        self._enqueue({"type": "http.response.start", "status": status, "headers": lines})
        if end_stream:
            self.send_data(b"", True)

    def send_data(self, data: bytes, end_stream: bool) -> None:
        """Queue content."""
        self._queued_octets += len(data)
        self.account.change(len(data))
        last = self._outgoing[-1] if self._outgoing else None
        if last is not None and "body" in last and len(last["body"]) + len(data) <= JOINED_OCTETS:
            last["body"] += data
            last["more_body"] = not end_stream
        else:
            self._enqueue({"type": "http.response.body", "body": data, "more_body": not end_stream})

    def send_trailers(self, fields: Fields) -> None:
        """End the response: Hypercorn sends no trailers over HTTP/1.1."""
        self.send_data(b"", True)

    def reset(self, code: int, after_data: bool) -> None:
        """Queue a 502 if no head was sent, else abort the connection."""
        if self._head_sent:
            self._enqueue({"type": _ABORT})
            return
        self._reply_locally(UpstreamReset(f"the upstream reset the stream ({error_code_name(code)})"))

    def reset_now(self, code: int) -> None:
        """Drop queued content; then as `reset`."""
        self._outgoing = deque(each for each in self._outgoing if each["type"] == "http.response.start")
        self.account.change(-self._queued_octets)
        self._queued_octets = 0
        self.reset(code, False)

    def count_queued_octets(self) -> int:
        """Return the octets of the response that were not sent."""
        return self._queued_octets

    def acknowledge(self, octets: int) -> None:
        """Permit reading so many more octets of the request."""
        self._unacknowledged_octets -= octets
        if self._unacknowledged_octets < _WINDOW_OCTETS:
            self._gate.set()

    # ---- for the listener

    def end(self, failure: Failure) -> None:
        """Cancel the exchange: answer with this failure if no head was sent, else abort the connection."""
        receiver, self.receiver = self.receiver, None
        if receiver is None:  # its response is complete
            return
        if self._head_sent:
            self._enqueue({"type": _ABORT})
        else:
            self._reply_locally(failure)
        self._call(receiver.on_request_reset, ErrorCode.CANCEL, False)

    # ---- both directions

    def _give_up(self, octets: int, least_octets: int) -> None:
        """Abort the exchange, or what is left of its response; and drop all that is queued."""
        if self.account.octets < least_octets:
            return
        if self.receiver is not None:
            self._call(self.receiver.on_evicted, memory_is_short())
        elif self._queued_octets:
            self.reset_now(ErrorCode.ENHANCE_YOUR_CALM)

    def _enqueue(self, message: Message) -> None:
        self._outgoing.append(message)
        self._enqueued.set()

    def _reply_locally(self, failure: Failure) -> None:
        """Queue the whole response of an exchange that has failed and queued nothing."""
        reply = local_reply(failure, RequestKind.OTHER, random_fraction=0.0)
        self._head_sent = True
        self._enqueue({"type": "http.response.start", "status": reply.status, "headers": reply.fields})
        self.send_data(reply.body, True)

    def _cancel(self) -> None:
        """Cancel the exchange, unless it is over."""
        if self.receiver is not None:
            self._call(self.receiver.on_request_reset, ErrorCode.CANCEL, True)
            self.receiver = None

    def _call(self, tell: Callable[..., object], *args: object) -> None:
        """Tell the exchange something. An exception is reported, and aborts it as an internal error."""
        try:
            tell(*args)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is a bug, and the client has to be answered
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "internal error while a request was served", "exception": exc})
            receiver, self.receiver = self.receiver, None
            if self._head_sent:
                self.reset(ErrorCode.INTERNAL_ERROR, True)
            else:
                self._reply_locally(Internal("internal error of the sidecar; the log says where"))
            if receiver is not None:
                self._call(receiver.on_internal_error)

    async def _read(self) -> None:
        """Pass the request to the exchange; drop its rest once the exchange is over."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._cancel()
                self._request_complete.set()
                self._enqueue({"type": _ABORT})
                return
            data, more_follows = message.get("body", b""), message.get("more_body", False)
            if (data or not more_follows) and not self._request_complete.is_set() and self.receiver is not None:
                self._unacknowledged_octets += len(data)
                self._call(self.receiver.on_request_data, bytes(data), not more_follows)
                if self._unacknowledged_octets >= _WINDOW_OCTETS and self.receiver is not None:
                    self._gate.clear()
            if not more_follows:
                self._request_complete.set()
                self._gate.set()  # no acknowledgement follows that would set it

    async def _write(self) -> None:
        while True:
            while not self._outgoing:
                self._enqueued.clear()
                await self._enqueued.wait()
            message = self._outgoing.popleft()
            if message["type"] == _ABORT:
                return  # Hypercorn closes the connection of an application that returns before the end of its response
            octets = len(message.get("body", b""))
            if self._is_head_request and octets:
                message = {**message, "body": b""}
            if message.get("more_body") is False:
                await self._finish(message)
                return
            self._queued_octets -= octets
            await self._send(message)
            self.account.change(-octets)
            if octets and self.receiver is not None:
                self._call(self.receiver.on_response_sent, octets)

    async def _finish(self, message: Message) -> None:
        """Send the last of the response; wait some time for the end of the request before the end of the response."""
        if not self._request_complete.is_set():
            await self._send({**message, "more_body": True})
            message = {**message, "body": b""}
            if self.receiver is None:
                self._gate.set()
            try:
                async with asyncio.timeout(_LINGER_SECONDS):
                    await self._request_complete.wait()
            except TimeoutError:
                pass
        await self._send(message)


def browser_refusal(scope: Message, allowed_hosts: frozenset[str] = frozenset()) -> BrowserRefused | None:
    """Return why a request of a web page is refused; None for any other request.

    Browsers can reach loopback by HTTP/1.1 without TLS. They name the page in `origin` (Fetch, 3.1), or its relation in
    `sec-fetch-site` (Fetch Metadata, 2.3), where `none` means that the address was typed. Restate sends neither. With
    DNS rebinding, only `host` shows the page, because its name leads to loopback; `hosts` decides which are accepted.
    """
    fields = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
    if b"origin" in fields or fields.get(b"sec-fetch-site", b"none") != b"none":
        return BrowserRefused("requests of web pages are refused: they would be signed with the sidecar's identity")
    if not _may_call_by(fields.get(b"host", b""), HostRules(scope["server"], allowed_hosts)):
        return BrowserRefused(
            "the Host of this request could be the name of a web page that leads to loopback (DNS rebinding): "
            "call 127.0.0.1 or localhost, or list the name in allowed_hosts (--allowed-hosts) if it is yours"
        )
    return None


def _may_call_by(host: bytes, rules: HostRules) -> bool:
    try:
        return not host or rules.allows(parse_authority(host)[0])
    except ValueError:
        return False

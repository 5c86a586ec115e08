"""All downstream connections of one worker: served, counted, drained.

`serving` accepts connections and passes them here. `drain` ends them all before Hypercorn closes its servers: since
Python 3.12.1, asyncio's servers wait without limit for every open connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Final, cast

import structlog

from proxy.connection.budget import Account, Budget
from proxy.connection.flusher import Flusher
from proxy.connection.protocol import MakeEngine, RequestAcceptor
from proxy.downstream.admission import AcceptedConnection, Admission
from proxy.downstream.ages import ConnectionAges
from proxy.downstream.cancels import CancelBudgets, client_of
from proxy.downstream.connection import DownstreamConnection
from proxy.downstream.deadlines import Deadlines
from proxy.downstream.http1 import Http1Stream, Message, Receive, Send, browser_refusal
from proxy.downstream.tls_reading import SlicedReads
from proxy.errors import Draining
from proxy.http2.engine import Stream
from proxy.http2.events import ErrorCode, StreamId
from proxy.observe.observer import DownstreamObserver

__all__ = ["CLIENT", "GATE", "Listener"]

_log: Final = structlog.get_logger("downstream")

GATE: Final = "gate"
"""Key of the connection's `Gate` in the ASGI state of an HTTP/1.1 request."""
CLIENT: Final = "client"
"""Key of the client's address there (`cancels.address_key`)."""

_LAST_SECONDS: Final = 0.5
"""Part of the drain timeout that is reserved for delivering the last frames."""
_RETIRE_SECONDS: Final = 0.5
"""How long a client that has connected meanwhile may send requests before it is asked to leave, too."""
_FRESH_SECONDS: Final = 0.5
"""How long a connection that was accepted before the end of the drain may take to send its first request."""


class Listener:
    """All downstream connections of one worker."""

    def __init__(
        self,
        acceptor: RequestAcceptor,
        make_engine: MakeEngine,
        budget: Budget,
        flusher: Flusher,
        observer: DownstreamObserver,
        *,
        allowed_hosts: Iterable[str] = (),
        most_connections: int = 4_096,
        cancels_per_minute: int = 12_000,
        deadlines: Deadlines | None = None,
        ages: ConnectionAges | None = None,
    ) -> None:
        self.acceptor = acceptor
        """Takes every request: the dispatcher."""
        self.allowed_hosts = frozenset(allowed_hosts)
        """Additional names of this server (see `hosts`), in lower case. It may be changed."""
        self.admission = Admission(observer, most_connections)
        """Which connections may be open."""
        self.cancels = CancelBudgets(flusher.loop, cancels_per_minute)
        """What clients cancel, by address."""
        self.deadlines = deadlines or Deadlines()
        """How long clients may take. It may be changed."""
        self.ages = ages or ConnectionAges(0.0)
        """Ends connections that are old."""
        self.drained = False
        """True after `drain`: new connections are dropped."""
        self.on_closed: Callable[[], None] = lambda: None
        """Called when an accepted connection has closed."""
        self.untracked = 0
        """Connections that were accepted, and whose task has not called `track` yet: also those whose TLS handshake is
        under way. Counted by `serving`."""
        self.stop_accepting: Callable[[], Awaitable[None]] = _no_server
        """Accepts no more connections, after those that are this worker's already. Set by `serving`."""
        self._observer = observer
        self._make_engine = make_engine
        self.budget = budget
        """What is charged for all that waits."""
        self._flusher = flusher
        self._connections: set[DownstreamConnection] = set()
        self._accepted = self.admission.accepted
        self._http1: set[Http1Stream] = set()
        self._changed = asyncio.Event()
        self._retiring = False
        self._retiring_ends = False
        self._draining = False
        self._aborting = False

    @property
    def live_exchanges(self) -> int:
        """Number of exchanges whose response has not been delivered in full."""
        return len(self._http1) + sum(connection.live_streams for connection in self._connections)

    def clients(self) -> Iterator[tuple[Account, list[Stream]]]:
        """Yield the account and the live streams of each connection; with HTTP/1.1, of each exchange."""
        for connection in list(self._connections):
            if not connection.closed:
                yield connection.account, connection.engine.live_streams()
        for stream in list(self._http1):
            yield stream.account, [stream]

    def connections(self) -> list[DownstreamConnection]:
        """Return all connections by HTTP/2."""
        return list(self._connections)

    # ---- for Hypercorn's connections

    @contextlib.contextmanager
    def track(self, transport: asyncio.Transport) -> Iterator[AcceptedConnection]:
        """Register an accepted connection while Hypercorn's task serves it, so that `drain` can end it."""
        accepted = AcceptedConnection(transport, asyncio.get_running_loop().time())
        self.admission.add(accepted)
        self.ages.watch(accepted)
        if self._retiring:
            accepted.retire()
        if self._draining:
            accepted.retire_http1()
        self.untracked -= 1
        try:
            yield accepted
        finally:
            self.admission.discard(accepted)
            self.ages.forget(accepted)
            if accepted.admitted:
                self._observer.downstream_closed()
            self.on_closed()
            self._changed.set()

    def admits(self, accepted: AcceptedConnection) -> bool:
        """Return True if an accepted connection may be served. It counts as open from then on."""
        accepted.admitted = not self.drained and self.admission.admits(accepted)
        if accepted.admitted:
            self._observer.downstream_opened()
        return accepted.admitted

    def handshake_failed(self, peer: object, reason: str) -> None:
        """Tell the observer of a TLS handshake that failed; `peer` is the name of the client's socket."""
        self.untracked -= 1
        self._changed.set()
        self._observer.handshake_failed(client_of(peer), reason)

    async def end_late(self) -> None:
        """End connections that are too late, until cancelled (`deadlines`). HTTP/1.1 is ended by `serving`."""
        loop = asyncio.get_running_loop()
        while True:
            deadlines = self.deadlines
            await asyncio.sleep(deadlines.sweep_seconds)
            now = loop.time()
            for accepted in list(self._accepted):
                connection = accepted.h2c
                if connection is None or connection.closed:
                    continue
                try:
                    if accepted.has_late_block(now, deadlines.head_seconds):
                        connection.cut_off(f"a field section took {deadlines.head_seconds:g} s (head_timeout)")
                    elif not connection.requests and now >= accepted.accepted_at + deadlines.first_request_seconds:
                        self._observer.connection_refused("no-request")
                        connection.go_away(f"no request within {deadlines.first_request_seconds:g} s")
                except Exception as exc:  # noqa: BLE001 - the other connections must be looked at, too
                    connection.report_error(exc)

    async def serve_h2c(self, accepted: AcceptedConnection, first: bytes) -> None:
        """Serve HTTP/2 on the connection, whose first octets were `first`; returns when it has closed."""
        transport = accepted.transport
        replaced = cast(asyncio.Protocol, transport.get_protocol())
        connection = DownstreamConnection(
            self._make_engine,
            self.budget,
            self._flusher,
            acceptor=self.acceptor,
            on_change=self._changed.set,
            replaced=replaced,
        )
        connection.on_refused = self._stream_refused
        accepted.h2c = connection
        address = accepted.address
        connection.on_cut_off = partial(self._observer.downstream_cut_off, address)
        self.budget.join(connection.account, address)
        budget = self.cancels.of(address)
        budget.open(connection.account, connection.on_cancelled)
        self._connections.add(connection)
        try:
            protocol: asyncio.BaseProtocol = connection.as_protocol()
            if isinstance(replaced, SlicedReads):
                protocol = SlicedReads(connection.as_protocol(), connection.get_buffer(-1), connection.buffer_updated)
            transport.set_protocol(protocol)
            connection.connection_made(transport)
            # The transport asks the new protocol for its buffer only after reading is resumed.
            transport.pause_reading()
            transport.resume_reading()
            connection.data_received(first)
            if accepted.leaving:  # it may serve what its client has been connecting for
                self._flusher.loop.call_later(_RETIRE_SECONDS, connection.retire)
            await connection.gone
        except asyncio.CancelledError:
            connection.abort_streams("the sidecar is shutting down")
            connection.abort()
            raise
        finally:
            budget.close(connection.account)
            self._connections.discard(connection)
            self._changed.set()

    def end_for_memory(self, accepted: AcceptedConnection) -> None:
        """End the connection of an HTTP/1.1 client because of what it sends ahead of its turn."""
        why = "memory is short (queued_octets), and it sends ahead of its turn"
        self._observer.downstream_cut_off(accepted.address, ErrorCode.ENHANCE_YOUR_CALM, why)
        accepted.abort()

    async def serve_http1(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one HTTP/1.1 exchange."""
        if (refusal := browser_refusal(scope, self.allowed_hosts)) is not None:
            self.refused("browser", protocol="HTTP/1.1")
        stream = Http1Stream(self.acceptor, receive, send, scope["state"][GATE], self.budget)
        address = scope["state"][CLIENT]
        self.budget.join(stream.account, address)
        budget = self.cancels.of(address)
        budget.open(stream.account)
        self._http1.add(stream)
        try:
            await stream.run(scope, refusal)
        finally:
            budget.close(stream.account)
            self._http1.discard(stream)
            self._changed.set()

    def refused(self, reason: str, **more: object) -> None:
        """Tell the observer of a request that breaks a rule; `more` must not quote the request."""
        self._observer.request_refused(reason, more)

    def _stream_refused(self, stream_id: StreamId, reason: str) -> None:
        self.refused(reason, protocol="HTTP/2", stream=stream_id)

    # ---- ending

    async def retire(self, timeout_seconds: float) -> None:
        """Have all clients leave, and serve them until they have; return after this long at most.

        `end_retiring` and `abort` end it.
        """
        self._retiring = True  # for connections that are accepted from now on
        for accepted in list(self._accepted):
            accepted.retire()
        await self._until(
            lambda: self._retiring_ends or not (self._accepted or self.untracked),
            asyncio.get_running_loop().time() + timeout_seconds - _LAST_SECONDS,
        )

    def end_retiring(self) -> None:
        """Make `retire` return now: `drain` need not wait for clients without a live exchange."""
        self._retiring_ends = True
        self._changed.set()

    async def drain(self, timeout_seconds: float) -> bool:
        """Wait until no exchange is live, then send GOAWAY on every connection and close; False if some were aborted.

        Takes at most `timeout_seconds`, but always long enough to deliver the last frames. `abort` ends the wait. Until
        then a connection over HTTP/1.1 ends with its next response, which says so: a new one may lead to the next
        sidecar.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        self._draining = True
        for accepted in list(self._accepted):
            accepted.retire_http1()
        await self._until(lambda: not self.live_exchanges, deadline - _LAST_SECONDS)
        await self.stop_accepting()
        until = loop.time() + _FRESH_SECONDS
        await self._until(lambda: not self.live_exchanges and not self._fresh(until), until)
        complete = not self.live_exchanges
        closing = self._close_all()
        for stream in list(self._http1):
            stream.end(Draining("the sidecar is shutting down, and waits no longer for the service"))
        idle = [accepted for accepted in self._accepted if accepted.is_idle_http1]
        plain = {accepted for accepted in idle if not accepted.is_tls}
        deliveries = [loop.create_task(accepted.close_delivered()) for accepted in idle]
        for delivery in deliveries:
            delivery.add_done_callback(lambda _: self._changed.set())

        def delivered() -> bool:
            ends = (*deliveries, *(connection.gone for connection in closing))
            return (
                all(end.done() for end in ends) and plain.isdisjoint(self._accepted) and (complete or not self._http1)
            )

        # Responses may still be in a transport's buffer, because their client reads slowly.
        soon = loop.time() + _LAST_SECONDS
        await self._until(delivered, max(soon, deadline) if complete else soon, abortable=complete)
        for delivery in deliveries:
            delivery.cancel()
        for connection in closing:
            connection.abort()
        self.drained = True
        self._close_all()  # connections that were accepted meanwhile
        for accepted in list(self._accepted):
            if accepted.protocol_unknown:
                accepted.abort()
        loop.call_later(_LAST_SECONDS if complete else 0.0, self._abort_accepted)
        return complete

    def _fresh(self, until: float) -> bool:
        """Return True if a connection that was accepted lately has not sent its first request, and may send it yet."""
        return self.untracked > 0 or any(
            accepted.accepted_at >= until - 2 * _FRESH_SECONDS and not accepted.used for accepted in self._accepted
        )

    def abort(self) -> None:
        """Make `drain` abort all live exchanges now."""
        self._aborting = True
        self._changed.set()

    async def _until(self, done: Callable[[], bool], deadline: float, *, abortable: bool = True) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not (done() or (abortable and self._aborting)):
                    self._changed.clear()
                    await self._changed.wait()

    def _close_all(self) -> list[DownstreamConnection]:
        """Close every connection with GOAWAY, and reset the streams that are still live; return the connections."""
        connections = list(self._connections)
        for connection in connections:
            if connection.live_streams:
                connection.abort_streams("the drain timeout is over")
            else:
                connection.go_away("the sidecar is shutting down")
        return connections

    def _abort_accepted(self) -> None:
        for accepted in list(self._accepted):
            accepted.abort()


async def _no_server() -> None:
    """Do nothing: nothing accepts connections yet."""

"""Engines as tests like to hold them: octets in, a list of events out, streams named by their id.

`EventEngine` stands on any engine. It also holds the contract wherever it is used: what a command queues is announced
to the handler, and what is owed to a stream and to the connection is what was reported and not acknowledged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pytest

from proxy.http2.choice import EngineFactory, engine_choice
from proxy.http2.engine import ConnectionHandler, Engine, Limits, Stream
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.policy import refusals
from tests.support.peers.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadReceived,
    PingAcknowledged,
    Sent,
    SettingsReceived,
)
from tests.support.peers.receivers import EventReceiver

__all__ = [
    "EventEngine",
    "EventEngineFactory",
    "EventFactory",
    "Handler",
    "Receiver",
    "assert_credit",
    "owed",
    "stream_of",
]

T = TypeVar("T")

_KEPT_STREAMS = 512
"""Streams that are over, the latest ones: commands for them must do nothing."""


class EventFactory(Protocol):
    """Makes an engine that returns events."""

    @property
    def name(self) -> str:
        """The engine's name."""

    def __call__(self, *, client: bool, limits: Limits) -> EventEngine:
        """Return a new engine, its preface and SETTINGS queued."""


@dataclass(frozen=True)
class EventEngineFactory:
    """An `EventFactory` whose engines stand on what another factory makes."""

    name: str
    make: EngineFactory

    def __call__(self, *, client: bool, limits: Limits) -> EventEngine:
        return EventEngine(self.make, client=client, limits=limits)


class Handler(ConnectionHandler):
    """Writes down what it is told about a connection, and gives each request a `Receiver`."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.react: Callable[[Event], None] = lambda _: None
        """Called with each event from within its callback: it may give commands, or raise."""
        self.sent: dict[StreamId, int] = {}
        """What was reported as sent, by stream, since it was last emptied."""
        self.streams: dict[StreamId, Stream] = {}
        self.refused: list[tuple[StreamId, str]] = []
        """Streams that were reset because the peer broke a rule, and why."""
        self.errors: list[tuple[Stream | None, Exception]] = []
        """What was raised while a stream was told something."""
        self.flushes = 0
        """How often a flush was asked for."""

    def note(self, event: Event) -> None:
        self.events.append(event)
        self.react(event)

    def schedule_flush(self) -> None:
        self.flushes += 1
        self.flush_scheduled = True

    def on_request(self, stream: Stream, fields: Fields, end_stream: bool) -> None:
        if not fields:
            self.on_stream_refused(stream.id, refusals.SECTION_TOO_LARGE)
            stream.reset_now(ErrorCode.ENHANCE_YOUR_CALM)
            return
        self.streams[stream.id] = stream
        stream.receiver = Receiver(self, stream.id)
        self.note(HeadReceived(stream.id, fields, end_stream))

    def on_stream_refused(self, stream_id: StreamId, reason: str) -> None:
        self.refused.append((stream_id, reason))

    def on_settings(self) -> None:
        self.note(SettingsReceived())

    def on_go_away(self, last_stream_id: StreamId, code: int, debug: bytes) -> None:
        self.note(GoAwayReceived(last_stream_id, code, debug))

    def on_ping_acknowledged(self, payload: bytes) -> None:
        self.note(PingAcknowledged(payload))

    def on_failed(self, code: int, reason: str) -> None:
        self.note(ConnectionFailed(code, reason))

    def on_internal_error(self, stream: Stream | None, exc: Exception) -> None:
        self.errors.append((stream, exc))


class Receiver(EventReceiver):
    """Passes on to a `Handler` what it is told about one stream."""

    def __init__(self, handler: Handler, stream_id: StreamId) -> None:
        super().__init__(stream_id)
        self.handler = handler

    def note(self, event: Event) -> None:
        self.handler.note(event)

    def note_sent(self, octets: int) -> None:
        assert octets > 0
        assert self.stream_id not in self.handler.sent, "one report a stream"
        self.handler.sent[self.stream_id] = octets


class EventEngine:
    """One side of one connection that returns events and takes commands by stream id."""

    def __init__(self, make: EngineFactory, *, client: bool, limits: Limits) -> None:
        self.handler = Handler()
        self.engine: Engine = make(client=client, limits=limits, handler=self.handler)
        self.client = client
        self.strict = True
        """Whether errors of receivers are raised and what is owed is compared; not where a test acts in callbacks."""
        self._owed: dict[StreamId, int] = defaultdict(int)
        self._connection_owed = 0

    # ---- receiving

    def receive(self, data: bytes) -> list[Event]:
        """Return all events of these octets, in order."""
        self.engine.receive(data)
        events = self.handler.events[:]
        self.handler.events.clear()
        if not self.strict:
            return events
        if self.handler.errors:
            raise self.handler.errors[0][1]
        for event in events:
            if isinstance(event, DataReceived):
                self._owed[event.stream_id] += len(event.data)
                self._connection_owed += len(event.data)
        assert self.engine.owed_octets == self._connection_owed
        for stream_id in {event.stream_id for event in events if isinstance(event, DataReceived)}:
            assert self.handler.streams[stream_id].owed_octets == self._owed[stream_id]
        if len(self.handler.streams) > 2 * _KEPT_STREAMS:
            self.forget_finished(_KEPT_STREAMS)
        return events

    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        """Give a stream's window back; no more than is owed."""
        stream = self.handler.streams.get(stream_id)
        octets = min(octets, self._owed[stream_id])
        if stream is not None and octets:
            self._owed[stream_id] -= octets
            self._command(lambda: stream.acknowledge(octets))
            assert stream.owed_octets == self._owed[stream_id]

    def acknowledge_connection(self, octets: int) -> None:
        """Give the connection's window back: all that is owed, if any was given to do."""
        if octets:
            self._connection_owed = 0
            self._command(self.engine.acknowledge_connection)
            assert self.engine.owed_octets == 0

    def take_refused(self) -> list[tuple[StreamId, str]]:
        """Return which streams were reset since the last call because the peer broke a rule, and why."""
        refused, self.handler.refused = self.handler.refused, []
        return refused

    # ---- sending

    def send_request(self, fields: Fields, end_stream: bool) -> StreamId:
        receiver = Receiver(self.handler, 0)
        stream = self._command(lambda: self.engine.open(fields, end_stream, receiver))
        receiver.stream_id = stream.id
        self.handler.streams[stream.id] = stream
        return stream.id

    def send_head(self, stream_id: StreamId, fields: Fields, end_stream: bool) -> None:
        self._on(stream_id, lambda stream: stream.send_head(fields, end_stream))

    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        self._on(stream_id, lambda stream: stream.send_data(data, end_stream))

    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        self._on(stream_id, lambda stream: stream.send_trailers(fields))

    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        self._on(stream_id, lambda stream: stream.reset(code, after_data))

    def reset_now(self, stream_id: StreamId, code: int) -> None:
        self._on(stream_id, lambda stream: stream.reset_now(code))

    def ping(self, payload: bytes) -> None:
        self._command(lambda: self.engine.ping(payload))

    def offer_no_streams(self) -> None:
        self._command(lambda: self.engine.offer_no_streams())

    def announce_go_away(self) -> None:
        self._command(self.engine.announce_go_away)

    def go_away(self, code: int, debug: bytes = b"") -> None:
        self._command(lambda: self.engine.go_away(code, debug))

    def take(self) -> tuple[bytes, list[Sent]]:
        """Return all octets to send now, and per stream how much queued content is among them."""
        self.handler.flush_scheduled = False
        data = self.engine.take()
        self.engine.report_sent()
        sent = [Sent(stream_id, octets) for stream_id, octets in self.handler.sent.items()]
        self.handler.sent.clear()
        return data, sent

    def _on(self, stream_id: StreamId, command: Callable[[Stream], None]) -> None:
        stream = self.handler.streams.get(stream_id)
        if stream is not None:
            self._command(lambda: command(stream))

    def _command(self, command: Callable[[], T]) -> T:
        """Give a command, and see that the handler is told of what it queues."""
        wanted = self.engine.wants_to_send()
        try:
            return command()
        finally:
            if not wanted and self.engine.wants_to_send():
                assert self.handler.flush_scheduled, "a flush is scheduled for what a command has queued"

    def forget_finished(self, keep: int = 0) -> None:
        """Forget streams that are over, but for the latest ones."""
        streams = self.handler.streams
        kept = {stream.id for stream in self.engine.live_streams()} | set(sorted(streams)[len(streams) - keep :])
        for stream_id in streams.keys() - kept:
            del streams[stream_id]
            self._owed.pop(stream_id, None)

    # ---- questions

    @property
    def peer_max_concurrent_streams(self) -> int:
        return self.engine.peer_max_concurrent_streams

    @property
    def open_streams(self) -> int:
        return self.engine.count_open_streams()

    @property
    def free_streams(self) -> int:
        return self.engine.count_free_streams()

    @property
    def queued_octets(self) -> int:
        return self.engine.count_queued_octets()

    @property
    def wants_to_send(self) -> bool:
        return self.engine.wants_to_send()


# ---- any engine's accounts


def stream_of(engine: Engine, stream_id: StreamId) -> Stream | None:
    """Return the live stream with this id, None without."""
    return next((stream for stream in engine.live_streams() if stream.id == stream_id), None)


def owed(engine: Engine, stream_id: StreamId) -> int:
    """Return how much content of a live stream was reported and not acknowledged; 0 for one that is over."""
    stream = stream_of(engine, stream_id)
    return stream.owed_octets if stream is not None else 0


def assert_credit(engine: Engine) -> None:
    """Never more is acknowledged than was received, on no live stream and not on the connection."""
    assert engine.owed_octets >= 0, "more of the connection's window was given back than was used"
    for stream in engine.live_streams():
        assert stream.owed_octets >= 0, f"more was acknowledged on stream {stream.id} than was received"


# ---- the engines under test

# "auto" is the compiled engine where there is one, and h2 once more where there is none.
_CHOICES = (engine_choice("h2"), engine_choice("auto"))
FACTORIES: dict[str, EngineFactory] = {chosen.name: chosen.make for chosen in _CHOICES}
"""Every engine by name. Another is added here only."""

ENGINES: list[EventFactory] = [EventEngineFactory(name, make) for name, make in FACTORIES.items()]
"""The same engines as `EventEngine`s."""

each_engine = pytest.mark.parametrize("make", ENGINES, ids=list(FACTORIES))
"""Runs a test once with every engine; the factory of its `EventEngine` is the argument `make`."""

each_bare_engine = pytest.mark.parametrize("make", FACTORIES.values(), ids=list(FACTORIES))
"""The same for tests that bring their own handler and receivers."""

"""One connection between an engine and a transport: when octets leave, when credit goes back, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import pytest
from hyperframe.frame import PingFrame, RstStreamFrame, SettingsFrame

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import (
    DataReceived,
    ErrorCode,
    Event,
    Fields,
    GoAwayReceived,
    HeadReceived,
    InterimReceived,
    StreamId,
    StreamReset,
    TrailersReceived,
)
from proxy.wire import Budget, Sink
from tests.conformance.engines import each_engine
from tests.support.ends import Client, Ledger
from tests.support.interpreted import interpreted
from tests.support.workshop import Transport, Workshop

if TYPE_CHECKING:
    from proxy.wire import FrameProtocol
else:
    FrameProtocol = interpreted("proxy.wire.protocol").FrameProtocol  # a compiled one can be no base here

RESPONSE: Fields = [(b":status", b"200", False)]


class Listener(Sink):
    """Takes what comes of one stream."""

    def __init__(self, on_broken: Callable[[], None] = lambda: None) -> None:
        self.defects = 0
        self._on_broken = on_broken

    def broken(self) -> None:
        self.defects += 1
        self._on_broken()


class Server(FrameProtocol):
    """A connection that writes down what it is told, and fails for streams that it is told to fail for."""

    def __init__(self, engine: Ledger, budget: Budget, loop: Workshop) -> None:
        super().__init__(engine, budget, loop)
        self.events: list[Event] = []
        self.sent: list[tuple[StreamId, int]] = []
        self.lost: list[str] = []
        self.flushes = 0
        self.failing: set[StreamId] = set()

    def listen(self, stream_id: StreamId, listener: Listener) -> None:
        self._sinks[stream_id] = listener

    def _note(self, event: HeadReceived | DataReceived | TrailersReceived | StreamReset) -> None:
        self.events.append(event)
        if event.stream_id in self.failing:
            raise Defect

    def on_head(self, event: HeadReceived) -> None:
        self._note(event)

    def on_interim(self, event: InterimReceived) -> None:
        raise AssertionError("a server hears of no interim response")

    def on_data(self, event: DataReceived) -> None:
        self.credit_octets += len(event.data)
        self._note(event)

    def on_trailers(self, event: TrailersReceived) -> None:
        self._note(event)

    def on_reset(self, event: StreamReset) -> None:
        self._note(event)

    def on_go_away(self, event: GoAwayReceived) -> None:
        raise Defect

    def on_sent(self, stream_id: StreamId, octets: int) -> None:
        self.sent.append((stream_id, octets))
        if stream_id in self.failing:
            raise Defect

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def after_flush(self) -> None:
        super().after_flush()
        self.flushes += 1


class Defect(Exception):
    """What nobody expects."""


class Pair:
    """A server connection on a transport in memory, and a client engine."""

    def __init__(self, make: EngineFactory, limits: Limits | None = None, *, queued_octets: int = 1 << 20) -> None:
        self.loop = Workshop()
        self.budget = Budget(queued_octets)
        self.ledger = Ledger(make(client=False, limits=limits or Limits()))
        self.server = Server(self.ledger, self.budget, self.loop)
        self.transport = Transport(self.loop, self.server.as_protocol())
        self.client = Client(make, Limits(stream_window_octets=65_535, connection_window_octets=65_535))
        self.client.acknowledging = False
        self.server.connection_made(self.transport)
        self.settle()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.abort()
        self.loop.turn()
        self.loop.close()

    def up(self) -> None:
        """Give the server what the client has."""
        self.server.data_received(self.client.take())

    def down(self) -> None:
        """Let the server flush, and give the client what it wrote."""
        self.loop.turn()
        self.client.receive(self.transport.read())

    def settle(self) -> None:
        for _ in range(20):
            self.up()
            self.down()

    def answered(self, content: bytes) -> StreamId:
        """Open a stream and queue a response on it that does not end."""
        stream = self.client.request("/x", end=True)
        self.up()
        self.server.engine.send_head(stream, RESPONSE, end_stream=False)
        self.server.send_data(stream, content, end_stream=False)
        return stream

    def defects(self) -> list[object]:
        found = [context["exception"] for context in self.loop.uncaught]
        self.loop.uncaught.clear()
        return found


@each_engine
def test_all_that_is_queued_in_a_turn_leaves_in_one_write(make: EngineFactory) -> None:
    with Pair(make) as pair:
        before = pair.server.flushes
        streams = [pair.answered(b"content") for _ in range(10)]
        pair.server.send_trailers(streams[0], [(b"x", b"1", False)])
        pair.server.reset(streams[1], ErrorCode.CANCEL)
        written = pair.transport.written
        assert pair.transport.get_write_buffer_size() == 0
        pair.loop.turn()
        assert pair.server.flushes == before + 1
        assert pair.transport.written > written
        pair.down()
        assert pair.client.streams[streams[0]].trailers == [(b"x", b"1", False)]
        assert pair.client.streams[streams[1]].reset == ErrorCode.CANCEL
        assert pair.client.streams[streams[9]].content == b"content"


@each_engine
def test_content_counts_as_sent_only_once_the_transport_takes_more(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.answered(b"first")
        pair.loop.turn()
        assert pair.server.sent == [(stream, 5)]
        pair.transport.fills = True
        pair.server.send_data(stream, b"second", end_stream=False)
        pair.loop.turn()
        assert pair.server.sent == [(stream, 5)], "it was written, and the transport is full"
        pair.server.send_data(stream, b"third", end_stream=False)
        written = pair.transport.written
        pair.loop.turn()
        assert pair.transport.written == written
        assert pair.budget.queued_octets == 5
        pair.transport.resume()
        assert pair.server.sent == [(stream, 5), (stream, 6)]
        pair.loop.turn()
        assert pair.server.sent == [(stream, 5), (stream, 6), (stream, 5)]
        assert pair.budget.queued_octets == 0


@each_engine
def test_a_stream_that_is_stuck_leaves_the_connection_to_the_others(make: EngineFactory) -> None:
    limits = Limits(stream_window_octets=20_000, connection_window_octets=65_535)
    with Pair(make, limits) as pair:
        stuck = pair.client.request("/stuck")
        pair.client.engine.send_data(stuck, bytes(100_000), end_stream=False)
        pair.settle()
        assert pair.client.sent[stuck] == 20_000
        for _ in range(10):
            stream = pair.client.request("/x")
            pair.client.engine.send_data(stream, bytes(20_000), end_stream=True)
            pair.settle()
            assert pair.client.sent[stream] == 20_000
        assert pair.client.sent[stuck] == 20_000
        pair.server.acknowledge(stuck, 20_000)
        pair.settle()
        assert pair.client.sent[stuck] == 40_000


@each_engine
def test_an_acknowledgement_that_opens_no_window_yet_wakes_nobody(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, b"content", end_stream=False)
        pair.settle()
        flushes = pair.server.flushes
        pair.server.acknowledge(stream, 1)
        pair.loop.turn()
        assert pair.server.flushes - flushes == (1 if pair.transport.get_write_buffer_size() else 0)


@each_engine
def test_credit_waits_while_the_budget_is_used_up(make: EngineFactory) -> None:
    limits = Limits(stream_window_octets=200_000, connection_window_octets=65_535)
    with Pair(make, limits, queued_octets=1_000) as pair:
        pair.budget.change(1_000)
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, bytes(150_000), end_stream=False)
        pair.settle()
        assert pair.client.sent[stream] == 65_535
        assert pair.ledger.connection_acknowledged == 0
        pair.budget.change(-1_000)
        pair.settle()
        assert pair.client.sent[stream] == 150_000
        assert pair.ledger.connection_acknowledged == 150_000


ENDS: dict[str, Callable[[Pair], None]] = {
    "closed": lambda pair: pair.server.close("enough"),
    "aborted": lambda pair: pair.server.abort(),
    "lost": lambda pair: pair.transport.lose(ConnectionResetError("by peer")),
}


@each_engine
@pytest.mark.parametrize("how", ENDS)
def test_what_a_connection_holds_is_off_the_budget_when_it_ends(make: EngineFactory, how: str) -> None:
    with Pair(make) as pair:
        pair.answered(bytes(200_000))
        pair.transport.fills = True
        pair.loop.turn()
        pair.answered(bytes(300_000))
        pair.loop.turn()
        # The client's windows take 65,535 octets; the transport was full after that.
        assert pair.budget.queued_octets == 500_000 - 65_535
        ENDS[how](pair)
        for _ in range(3):
            pair.down()
        assert pair.budget.queued_octets == 0
        assert len(pair.server.lost) == 1


@each_engine
def test_a_connection_that_is_lost_says_why(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.transport.lose(ConnectionResetError("by peer"))
        pair.loop.turn()
        assert pair.server.lost == ["ConnectionResetError: by peer"]
        assert pair.server.closed
    with Pair(make) as pair:
        assert pair.server.eof_received() is False
        pair.transport.lose(None)
        pair.loop.turn()
        assert pair.server.lost == ["closed by the peer"]


@each_engine
def test_closing_delivers_what_is_queued_and_happens_once(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.answered(b"last words")
        pair.server.close("enough")
        pair.server.close("again")
        assert pair.server.lost == ["enough"]
        pair.down()
        assert pair.client.streams[stream].content == b"last words"
        pair.loop.turn()
        assert pair.transport.lost
        assert not pair.transport.aborted
        assert pair.server.lost == ["enough"]
        pair.loop.advance(60.0)
        assert not pair.transport.aborted


@each_engine
def test_a_peer_that_does_not_read_keeps_a_closed_connection_for_five_seconds(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.answered(b"last words")
        pair.server.close("enough")
        pair.loop.advance(4.9)
        assert not pair.transport.aborted
        pair.loop.advance(0.2)
        assert pair.transport.aborted


@each_engine
def test_closing_a_transport_that_is_closing_only_says_so(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.answered(b"never seen")
        pair.transport.lose(None)
        pair.server.close("enough")
        assert pair.server.lost == ["enough"]
        pair.loop.turn()
        assert pair.server.lost == ["enough"]


@each_engine
def test_without_a_transport_there_is_nothing_to_close_or_flush(make: EngineFactory) -> None:
    with Pair(make) as pair:
        early = Server(Ledger(make(client=False, limits=Limits())), pair.budget, pair.loop)
        early.close("too early")
        early.abort()
        early.schedule_flush()
        pair.loop.turn()
        assert not early.closed
        assert early.lost == []


@each_engine
def test_a_broken_rule_is_answered_with_go_away_and_a_close(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.client.request("/x")
        pair.client.raw(RstStreamFrame(9))
        pair.up()
        assert [event.stream_id for event in pair.server.events if isinstance(event, HeadReceived)] == [stream]
        assert len(pair.server.lost) == 1
        pair.down()
        assert any(isinstance(event, GoAwayReceived) for event in pair.client.others)
        assert pair.transport.is_closing()


@each_engine
def test_what_arrives_after_the_close_is_not_looked_at(make: EngineFactory) -> None:
    with Pair(make, queued_octets=1_000) as pair:
        stream = pair.client.request("/x")
        pair.up()
        seen = len(pair.server.events)
        pair.server.close("enough")
        pair.budget.change(1_000)
        pair.client.engine.send_data(stream, b"late", end_stream=False)
        pair.up()
        assert len(pair.server.events) == seen
        pair.budget.change(-1_000)
        assert pair.ledger.connection_acknowledged == 0


@each_engine
def test_a_connection_that_fails_does_not_wait_for_the_budget(make: EngineFactory) -> None:
    with Pair(make, queued_octets=1_000) as pair:
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, b"content", end_stream=False)
        pair.client.raw(RstStreamFrame(9))
        pair.budget.change(1_000)
        pair.up()
        assert pair.server.closed
        pair.budget.change(-1_000)
        assert pair.ledger.connection_acknowledged == 0


@each_engine
def test_a_connection_that_ends_while_it_waits_for_the_budget_is_not_called_any_more(make: EngineFactory) -> None:
    with Pair(make, queued_octets=1_000) as pair:
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, b"content", end_stream=False)
        pair.budget.change(1_000)
        pair.up()
        pair.server.close("enough")
        pair.budget.change(-1_000)
        assert pair.ledger.connection_acknowledged == 0


@each_engine
def test_a_defect_ends_its_stream_and_the_rest_of_the_read_is_served(make: EngineFactory) -> None:
    with Pair(make) as pair:
        listener = Listener()
        broken, sound = pair.client.request("/broken"), pair.client.request("/sound")
        pair.settle()
        pair.server.failing = {broken}
        pair.server.listen(broken, listener)
        pair.client.engine.send_data(broken, b"content", end_stream=False)
        pair.client.engine.send_data(sound, b"content", end_stream=False)
        pair.settle()
        assert DataReceived(sound, b"content", False) in pair.server.events
        assert pair.client.streams[broken].reset == ErrorCode.INTERNAL_ERROR
        assert pair.client.streams[sound].reset is None
        assert pair.ledger.connection_acknowledged == 14
        assert listener.defects == 1
        assert [type(defect) for defect in pair.defects()] == [Defect]


@each_engine
def test_a_defect_while_sent_content_is_reported_costs_the_others_nothing(make: EngineFactory) -> None:
    with Pair(make) as pair:
        broken, sound = pair.answered(b"content"), pair.answered(b"content")
        pair.server.failing = {broken}
        pair.loop.turn()
        assert pair.server.sent == [(broken, 7), (sound, 7)]
        assert [type(defect) for defect in pair.defects()] == [Defect]
        pair.transport.fills = True
        pair.server.send_data(sound, b"more", end_stream=False)
        pair.server.failing = {sound}
        pair.loop.turn()
        pair.transport.resume()
        assert pair.server.sent[-1] == (sound, 4)
        assert [type(defect) for defect in pair.defects()] == [Defect]


@each_engine
def test_a_listener_that_fails_at_being_told_is_reported_and_let_go(make: EngineFactory) -> None:
    def fail() -> NoReturn:
        raise KeyError

    with Pair(make) as pair:
        listener = Listener(fail)
        stream = pair.answered(b"content")
        pair.server.listen(stream, listener)
        pair.server.failing = {stream}
        pair.loop.turn()
        assert listener.defects == 1
        assert [type(defect) for defect in pair.defects()] == [Defect, KeyError]


@each_engine
def test_a_defect_that_concerns_no_stream_ends_the_connection(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.client.engine.go_away(ErrorCode.NO_ERROR)
        with pytest.raises(Defect):
            pair.up()
        assert pair.defects() == []


@each_engine
def test_pings_and_settings_need_no_attention(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.client.raw(PingFrame(0, b"87654321"))
        pair.client.raw(SettingsFrame(0, settings={4: 1_000}))
        pair.up()
        pair.loop.turn()
        pair.transport.read()  # what is acknowledged, the client's engine knows nothing of
        pair.server.engine.ping(b"12345678")
        pair.server.schedule_flush()
        pair.settle()
        assert pair.server.events == []
        assert pair.server.lost == []


def test_a_budget_wakes_who_waits_once_a_quarter_is_free() -> None:
    budget = Budget(1000)
    woken: list[str] = []
    budget.change(500)
    assert not budget.crowded
    budget.change(499)
    assert budget.crowded
    assert not budget.used_up
    budget.change(1)
    assert budget.used_up
    budget.wait(lambda: woken.append("a"))
    budget.change(-249)
    assert not woken
    budget.change(-1)
    assert woken == ["a"]
    budget.change(-750)
    assert woken == ["a"]
    assert budget.queued_octets == 0


def test_who_left_the_budget_is_not_woken() -> None:
    budget = Budget(10)
    woken: list[str] = []

    def wake() -> None:
        woken.append("a")

    budget.change(10)
    budget.wait(wake)
    budget.leave(wake)
    budget.leave(wake)
    budget.change(-10)
    assert not woken


def test_who_is_woken_may_wait_again_at_once() -> None:
    budget = Budget(10)
    woken: list[int] = []

    def wake() -> None:
        woken.append(budget.queued_octets)
        if len(woken) == 1:
            budget.change(10)
            budget.wait(wake)

    budget.change(10)
    budget.wait(wake)
    budget.change(-10)
    assert woken == [0]
    budget.change(-10)
    assert woken == [0, 0]

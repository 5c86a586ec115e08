"""One connection between an engine and a transport: when octets leave, when credit goes back, how it ends."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hyperframe.frame import PingFrame, RstStreamFrame, SettingsFrame

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode
from proxy.http2.policy.sending import MAX_TAKEN_OCTETS
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import GoAwayReceived, HeadReceived
from tests.unit.connection.stage import Pair, Server


@each_bare_engine
def test_octets_queued_in_one_turn_leave_in_one_write(make: EngineFactory) -> None:
    with Pair(make) as pair:
        before = pair.server.flushes
        ids = [pair.answered(b"content") for _ in range(10)]
        pair.server.streams[ids[0]].send_trailers([(b"x", b"1", False)])
        pair.server.streams[ids[1]].reset(ErrorCode.CANCEL, False)
        written = pair.transport.written
        assert pair.transport.get_write_buffer_size() == 0
        pair.loop.turn()
        assert pair.server.flushes == before + 1
        assert pair.transport.written > written
        pair.down()
        assert pair.client.streams[ids[0]].trailers == [(b"x", b"1", False)]
        assert pair.client.streams[ids[1]].reset == ErrorCode.CANCEL
        assert pair.client.streams[ids[9]].content == b"content"


@each_bare_engine
def test_octets_may_come_as_data_or_be_read_to_the_buffer(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream_id = pair.client.request("/", end=False)
        pair.client.engine.send_data(stream_id, b"x" * 10_000, end_stream=True)
        data = pair.client.take()
        pair.server.data_received(data[:1_000])
        buffer = pair.server.get_buffer(-1)
        for place in range(1_000, len(data), 700):
            part = data[place : place + 700]
            buffer[: len(part)] = part
            pair.server.buffer_updated(len(part))
        pair.server.data_received(b"")
        pair.server.buffer_updated(0)
        assert pair.server.engine.owed_octets == 0
        assert pair.server.streams[stream_id].owed_octets == 10_000


@each_bare_engine
def test_more_octets_than_the_buffer_has_are_refused(make: EngineFactory) -> None:
    with Pair(make) as pair:
        for octets in (-1, len(pair.server.get_buffer(-1)) + 1):
            with pytest.raises(ValueError, match="buffer"):
                pair.server.buffer_updated(octets)


@each_bare_engine
def test_content_counts_as_sent_only_once_the_transport_takes_more(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream_id = pair.answered(b"first")
        stream = pair.server.streams[stream_id]
        pair.loop.turn()
        assert pair.server.sent == [(stream_id, 5)]
        pair.transport.stalls_at_next_write = True
        stream.send_data(b"second", False)
        pair.loop.turn()
        assert pair.server.sent == [(stream_id, 5)], "it was written, and the transport is full"
        stream.send_data(b"third", False)
        written = pair.transport.written
        pair.loop.turn()
        assert pair.transport.written == written
        assert pair.budget.queued_octets == 5 + pair.transport.get_write_buffer_size(), (
            "in the engine and the transport"
        )
        pair.transport.resume()
        assert pair.server.sent == [(stream_id, 5), (stream_id, 6)]
        pair.loop.turn()
        assert pair.server.sent == [(stream_id, 5), (stream_id, 6), (stream_id, 5)]
        assert pair.budget.queued_octets == 0


@each_bare_engine
def test_a_stalled_stream_does_not_stop_the_others(make: EngineFactory) -> None:
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
        pair.server.streams[stuck].acknowledge(20_000)
        pair.settle()
        assert pair.client.sent[stuck] == 40_000


@each_bare_engine
def test_an_acknowledgement_that_opens_no_window_causes_no_flush(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, b"content", end_stream=False)
        pair.settle()
        flushes = pair.server.flushes
        pair.server.streams[stream].acknowledge(1)
        pair.loop.turn()
        assert pair.server.flushes - flushes == (1 if pair.transport.get_write_buffer_size() else 0)


@each_bare_engine
def test_a_read_that_needs_no_answer_causes_no_flush(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, b"content", end_stream=False)
        flushes, turns = pair.server.flushes, pair.server.turns
        pair.up()
        assert pair.server.turns == turns + 1
        pair.loop.turn()
        assert pair.server.flushes == flushes


@each_bare_engine
def test_content_of_a_stream_that_the_client_resets_is_not_charged_any_more(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.answered(bytes(100_000))
        pair.settle()
        assert pair.budget.queued_octets > 0
        pair.client.engine.reset(stream, ErrorCode.CANCEL)
        pair.settle()
        assert pair.budget.queued_octets == 0


@each_bare_engine
def test_credit_waits_while_the_budget_is_used_up(make: EngineFactory) -> None:
    limits = Limits(stream_window_octets=200_000, connection_window_octets=65_535)
    with Pair(make, limits, queued_octets=1_000) as pair:
        pair.budget.change(1_000)
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, bytes(150_000), end_stream=False)
        pair.settle()
        assert pair.client.sent[stream] == 65_535
        assert pair.server.engine.owed_octets == 65_535
        pair.budget.change(-1_000)
        pair.settle()
        assert pair.client.sent[stream] == 150_000
        assert pair.server.engine.owed_octets == 0


# ---- how it ends


ENDS: dict[str, Callable[[Pair], None]] = {
    "closed": lambda pair: pair.server.close("enough"),
    "aborted": lambda pair: pair.server.abort(),
    "lost": lambda pair: pair.transport.lose(ConnectionResetError("by peer")),
}


@each_bare_engine
@pytest.mark.parametrize("how", ENDS)
def test_an_ended_connection_leaves_nothing_charged_to_the_budget(make: EngineFactory, how: str) -> None:
    with Pair(make) as pair:
        pair.answered(bytes(200_000))
        pair.transport.stalls_at_next_write = True
        pair.loop.turn()
        pair.answered(bytes(300_000))
        pair.loop.turn()
        # The client's windows take 65,535 octets; the transport was full after that.
        held = pair.transport.get_write_buffer_size() + pair.server.engine.count_frame_octets()
        assert held > 65_535
        assert pair.budget.queued_octets == 500_000 - 65_535 + held
        ENDS[how](pair)
        for _ in range(3):
            pair.down()
        assert pair.budget.queued_octets == 0
        assert not pair.server.account.holder.accounts
        assert len(pair.server.lost) == 1
        assert pair.server.engine.count_queued_octets() == 0, "it would wait for the garbage collector"


@each_bare_engine
@pytest.mark.parametrize("how", ENDS)
def test_each_live_stream_is_told_of_the_end_once_before_the_connection(make: EngineFactory, how: str) -> None:
    with Pair(make) as pair:
        live = [pair.answered(b"content") for _ in range(3)]
        pair.answered(b"over", end=True)
        pair.settle()
        ENDS[how](pair)
        for _ in range(3):
            pair.down()
        (reason,) = pair.server.lost
        assert pair.server.streams_lost == [(stream_id, reason) for stream_id in live]
        assert [pair.server.streams[stream_id].receiver for stream_id in live] == [None] * 3
        assert pair.errors() == []


@each_bare_engine
def test_a_receiver_that_raises_at_the_end_gets_an_internal_error_and_the_others_are_told_of_the_end(
    make: EngineFactory,
) -> None:
    with Pair(make) as pair:
        ids = [pair.answered(b"content") for _ in range(3)]
        pair.loop.turn()
        pair.server.failing = {ids[1]}
        pair.server.close("enough")
        assert pair.server.streams_lost == [(stream_id, "enough") for stream_id in ids]
        assert pair.server.lost == ["enough"]
        assert [pair.server.receivers[stream_id].internal_errors for stream_id in ids] == [0, 1, 0]
        assert len(pair.errors()) == 1


@each_bare_engine
def test_a_connection_that_is_lost_says_why(make: EngineFactory) -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    for exc, words in ((reset, "Connection reset by peer"), (ValueError("odd"), "ValueError: odd")):
        with Pair(make) as pair:
            pair.transport.lose(exc)
            pair.loop.turn()
            assert pair.server.lost == [words]
            assert pair.server.closed
    with Pair(make) as pair:
        assert pair.server.eof_received() is False
        pair.transport.lose(None)
        pair.loop.turn()
        assert pair.server.lost == ["closed by the peer"]


@each_bare_engine
def test_closing_delivers_queued_octets_once(make: EngineFactory) -> None:
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


@each_bare_engine
def test_a_peer_that_does_not_read_keeps_a_closed_connection_for_five_seconds(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.answered(b"last words")
        pair.server.close("enough")
        pair.loop.advance(4.9)
        assert not pair.transport.aborted
        pair.loop.advance(0.2)
        assert pair.transport.aborted


@each_bare_engine
def test_closing_a_transport_that_is_already_closing_reports_the_end_once(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.answered(b"never seen")
        pair.transport.lose(None)
        pair.server.close("enough")
        assert pair.server.lost == ["enough"]
        pair.loop.turn()
        assert pair.server.lost == ["enough"]


@each_bare_engine
def test_close_and_flush_do_nothing_without_a_transport(make: EngineFactory) -> None:
    with Pair(make) as pair:
        early = Server(make, Limits(), pair.budget, pair.flusher)
        early.close("too early")
        early.abort()
        early.schedule_flush()
        pair.loop.turn()
        assert not early.closed
        assert early.lost == []


@each_bare_engine
def test_a_connection_error_is_answered_with_goaway_and_a_close(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.client.request("/x")
        pair.client.raw(RstStreamFrame(9))
        pair.up()
        assert [event.stream_id for event in pair.server.events if isinstance(event, HeadReceived)] == [stream]
        assert len(pair.server.lost) == 1
        assert pair.server.streams_lost == [(stream, pair.server.lost[0])]
        pair.down()
        assert any(isinstance(event, GoAwayReceived) for event in pair.client.events)
        assert pair.transport.is_closing()


@each_bare_engine
def test_octets_after_the_close_are_ignored(make: EngineFactory) -> None:
    with Pair(make, queued_octets=1_000) as pair:
        stream = pair.client.request("/x")
        pair.up()
        seen = len(pair.server.events)
        pair.server.close("enough")
        pair.client.engine.send_data(stream, b"late", end_stream=False)
        pair.up()
        assert len(pair.server.events) == seen
        assert pair.server.engine.owed_octets == 0, "the engine has not seen it either"


@each_bare_engine
def test_a_peer_that_sends_on_after_the_close_is_read_for_twice_its_window(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.server.close("enough")
        for _ in range(32):
            pair.server.data_received(bytes(1 << 20))
        assert not pair.transport.aborted
        pair.server.data_received(b"x")
        assert pair.transport.aborted


@each_bare_engine
def test_a_connection_that_fails_does_not_wait_for_the_budget(make: EngineFactory) -> None:
    with Pair(make, queued_octets=1_000) as pair:
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, b"content", end_stream=False)
        pair.client.raw(RstStreamFrame(9))
        pair.budget.change(1_000)
        pair.up()
        assert pair.server.closed
        pair.budget.change(-1_000)
        assert pair.server.engine.owed_octets == 7


@each_bare_engine
def test_a_connection_that_ends_while_it_waits_for_the_budget_is_not_woken(make: EngineFactory) -> None:
    with Pair(make, queued_octets=1_000) as pair:
        stream = pair.client.request("/x")
        pair.client.engine.send_data(stream, b"content", end_stream=False)
        pair.budget.change(1_000)
        pair.up()
        pair.server.close("enough")
        pair.budget.change(-1_000)
        assert pair.server.engine.owed_octets == 7


@each_bare_engine
def test_pings_and_settings_reach_no_receiver(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.client.raw(PingFrame(0, b"87654321"))
        pair.client.raw(SettingsFrame(0, settings={4: 1_000}))
        pair.up()
        pair.loop.turn()
        pair.transport.read()  # what is acknowledged, the client's engine knows nothing of
        pair.server.engine.ping(b"12345678")
        pair.settle()
        assert pair.server.events == []
        assert pair.server.lost == []


@each_bare_engine
def test_a_peer_with_large_windows_that_does_not_read_gets_no_more_than_a_transport_takes(make: EngineFactory) -> None:
    windows = Limits(stream_window_octets=64 << 20, connection_window_octets=64 << 20)
    with Pair(make, client_limits=windows) as pair:
        pair.transport.stalls_at_next_write = True
        pair.answered(bytes(8 << 20))
        for _ in range(5):
            pair.loop.turn()
        taken = pair.transport.get_write_buffer_size()
        assert taken < MAX_TAKEN_OCTETS + 64_000
        assert pair.budget.queued_octets >= 8 << 20, "all of it is charged, wherever it waits"
        pair.transport.resume()
        pair.settle()
        assert pair.budget.queued_octets == 0


@each_bare_engine
def test_content_within_wide_windows_leaves_in_portions(make: EngineFactory) -> None:
    windows = Limits(stream_window_octets=64 << 20, connection_window_octets=64 << 20)
    with Pair(make, client_limits=windows) as pair:
        stream = pair.answered(bytes(3 << 20), end=True)
        pair.settle()
        assert sum(octets for stream_id, octets in pair.server.sent if stream_id == stream) == 3 << 20

"""An internal error while a stream is served ends the exchange of that stream and nothing else."""

from __future__ import annotations

import pytest

from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import DataReceived, GoAwayReceived
from tests.unit.connection.stage import Defect, Pair, Receiver

WINDOW = 65_535


@each_bare_engine
def test_an_internal_error_ends_its_stream_and_the_rest_of_the_read_is_served(make: EngineFactory) -> None:
    with Pair(make) as pair:
        broken, sound = pair.client.request("/broken"), pair.client.request("/sound")
        pair.settle()
        pair.server.failing = {broken}
        pair.client.engine.send_data(broken, b"content", end_stream=False)
        pair.client.engine.send_data(sound, b"content", end_stream=False)
        pair.up()
        assert DataReceived(sound, b"content", False) in pair.server.events
        assert pair.server.engine.owed_octets == 0
        pair.settle()
        assert pair.reset_codes(broken, sound) == [ErrorCode.INTERNAL_ERROR, None]
        assert pair.server.receivers[broken].internal_errors == 1
        assert pair.server.streams[broken].receiver is None
        assert pair.errors() == [Defect]


@each_bare_engine
def test_a_request_that_could_not_be_accepted_is_reset_and_the_next_one_served(make: EngineFactory) -> None:
    with Pair(make) as pair:
        broken, sound = pair.client.request("/broken"), pair.client.request("/sound")
        pair.server.failing = {broken}
        pair.settle()
        assert pair.server.streams[broken].receiver is None
        assert list(pair.server.receivers) == [sound]
        assert pair.reset_codes(broken, sound) == [ErrorCode.INTERNAL_ERROR, None]
        assert pair.errors() == [Defect]


@each_bare_engine
def test_an_internal_error_about_sent_content_does_not_affect_other_streams(make: EngineFactory) -> None:
    with Pair(make) as pair:
        broken, sound = pair.answered(b"content"), pair.answered(b"content")
        pair.server.failing = {broken}
        pair.loop.turn()
        assert pair.server.sent == [(broken, 7), (sound, 7)]
        assert pair.errors() == [Defect]
        pair.transport.stalls_at_next_write = True
        pair.server.streams[sound].send_data(b"more", False)
        pair.server.failing = {sound}
        pair.loop.turn()
        pair.transport.resume()
        assert pair.server.sent[-1] == (sound, 4)
        assert pair.errors() == [Defect]


@each_bare_engine
def test_queued_content_is_dropped_if_the_exchange_was_not_over(make: EngineFactory) -> None:
    with Pair(make) as pair:
        broken = pair.answered(bytes(100_000))
        pair.server.failing = {broken}
        pair.settle()
        assert len(pair.client.streams[broken].content) == WINDOW
        assert pair.reset_codes(broken) == [ErrorCode.INTERNAL_ERROR]
        assert pair.budget.queued_octets == 0
        assert pair.errors() == [Defect]


@each_bare_engine
@pytest.mark.parametrize("ended", [True, False])
def test_queued_content_still_leaves_if_the_exchange_was_over(make: EngineFactory, ended: bool) -> None:
    with Pair(make) as pair:
        broken = pair.answered(bytes(100_000), end=ended)
        pair.server.failing = {broken}
        pair.server.receivers[broken].was_over = True
        pair.settle()
        assert pair.errors() == [Defect]
        assert len(pair.client.streams[broken].content) == WINDOW
        assert pair.reset_codes(broken) == [None]
        pair.client.acknowledge_all()
        pair.settle()
        assert len(pair.client.streams[broken].content) == 100_000
        assert pair.client.streams[broken].ended is ended
        assert pair.reset_codes(broken) == [None if ended else ErrorCode.INTERNAL_ERROR]
        assert pair.budget.queued_octets == 0
        assert pair.errors() == [], "it is told no more"


@each_bare_engine
def test_a_receiver_that_had_detached_is_told_of_its_internal_error(make: EngineFactory) -> None:
    class Leaving(Receiver):
        def on_request_data(self, data: bytes, end_stream: bool) -> None:
            stream = pair.server.streams[self.stream_id]
            stream.receiver = None
            stream.send_head([(b":status", b"200", False)], False)
            stream.send_data(b"whole", True)
            raise Defect

    with Pair(make) as pair:
        stream_id = pair.client.request("/x")
        pair.up()
        stream = pair.server.streams[stream_id]
        stream.receiver = leaving = Leaving(pair.server, stream_id)
        leaving.was_over = True
        pair.client.engine.send_data(stream_id, b"content", end_stream=True)
        pair.settle()
        assert leaving.internal_errors == 1
        assert stream.receiver is None
        assert pair.client.streams[stream_id].content == b"whole"
        assert pair.client.streams[stream_id].ended
        assert pair.reset_codes(stream_id) == [None]
        assert pair.errors() == [Defect]


@each_bare_engine
def test_a_receiver_that_raises_when_told_of_an_error_is_reported_and_detached(make: EngineFactory) -> None:
    with Pair(make) as pair:
        stream = pair.answered(bytes(100_000))
        receiver = pair.server.receivers[stream]
        receiver.raised_again = KeyError()
        pair.server.failing = {stream}
        pair.settle()
        assert receiver.internal_errors == 1
        assert pair.server.streams[stream].receiver is None
        assert pair.reset_codes(stream) == [ErrorCode.INTERNAL_ERROR]
        assert pair.budget.queued_octets == 0
        assert pair.errors() == [Defect, KeyError]


@each_bare_engine
def test_an_exchange_that_raises_when_it_has_to_give_way_is_reset_and_the_connection_goes_on(
    make: EngineFactory,
) -> None:
    with Pair(make) as pair:
        small, large = pair.answered(bytes(100_000)), pair.answered(bytes(110_000))
        pair.settle()
        held = {stream: pair.server.streams[stream].count_queued_octets() for stream in (small, large)}
        pair.server.give_up(held[large], 1)  # a receiver of these tests does not know how
        pair.settle()
        assert pair.reset_codes(small, large) == [None, ErrorCode.INTERNAL_ERROR], "that was enough"
        pair.server.give_up(1 << 20, held[small])
        pair.settle()
        assert pair.reset_codes(small) == [ErrorCode.INTERNAL_ERROR]
        assert pair.budget.queued_octets == 0
        assert pair.errors() == [NotImplementedError] * 2
        assert not pair.server.closed


@each_bare_engine
def test_an_internal_error_without_a_stream_ends_the_connection(make: EngineFactory) -> None:
    with Pair(make) as pair:
        pair.client.engine.go_away(ErrorCode.NO_ERROR)
        pair.up()
        assert pair.server.closed
        (reason,) = pair.server.lost
        assert "internal error" in reason
        assert [type(context["exception"]).__name__ for context in pair.loop.uncaught] == ["Defect"]
        pair.loop.uncaught.clear()
        pair.down()
        (told,) = (event for event in pair.client.events if isinstance(event, GoAwayReceived))
        assert told.code == ErrorCode.INTERNAL_ERROR

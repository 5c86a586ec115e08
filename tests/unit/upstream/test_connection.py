"""The streams, resets and the end of one upstream connection, frame by frame, on every engine."""

from __future__ import annotations

import pytest

from proxy.errors import Failure, UpstreamConnectionLost, UpstreamNotHttp2
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode, Fields
from tests.support.loops import loop_idle, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import (
    ConnectionLost,
    DataReceived,
    HeadReceived,
    InterimReceived,
    InternalError,
    StreamReset,
    TrailersReceived,
    Unprocessed,
)
from tests.support.peers.raw import RESPONSE, TRAILERS, codes, content, credit
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.stage import TIMING, Far, Owner, settled

# ---- streams


@each_bare_engine
@with_manual_clock
async def test_a_connection_is_usable_once_settings_have_arrived(make: EngineFactory) -> None:
    far = Far(make, TIMING)
    assert not far.connection.ready.done()
    assert far.take()[0].kind == "Settings"
    far.greet(7)
    assert far.connection.ready.result() is None
    assert far.connection.count_free_streams() == 7
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_the_frames_of_a_stream_reach_its_receiver_in_order(make: EngineFactory) -> None:
    far, one, other = settled(make), RecordingReceiver(), RecordingReceiver()
    first, second = far.open(one, end=False), far.open(other)
    far.take()
    interim = [(b":status", b"103", False)]
    far.send(far.headers(first, interim), far.headers(first, RESPONSE), far.headers(second, RESPONSE, end=True))
    far.send(far.data(first, b"abc"), far.headers(first, TRAILERS, end=True))
    assert one.events == [
        InterimReceived(first, interim),
        HeadReceived(first, RESPONSE, False),
        DataReceived(first, b"abc", False),
        TrailersReceived(first, TRAILERS),
    ]
    assert other.events == [HeadReceived(second, RESPONSE, True)]
    assert far.connection.engine.count_open_streams() == 1, "the first request has not ended"
    far.streams[first].send_data(b"tail", True)
    assert content(far.take(), first) == b"tail"
    assert one.sent_octets == 4
    assert far.connection.engine.count_open_streams() == 0


@each_bare_engine
@with_manual_clock
async def test_the_number_of_free_streams_follows_the_peers_limit(make: EngineFactory) -> None:
    far = settled(make, 3)
    connection = far.connection
    heard: list[int] = []
    connection.owner = Owner(lambda changed: heard.append(changed.count_free_streams()))
    streams = [far.open() for _ in range(2)]
    assert connection.count_free_streams() == 1
    connection.reserved = 1
    assert connection.count_free_streams() == 0
    connection.reserved = 0
    far.limit(1)
    assert connection.count_free_streams() <= 0, "lowered below what is open"
    for stream in streams:
        far.send(far.headers(stream, RESPONSE, end=True))
    assert connection.count_free_streams() == 1
    far.limit(0)
    assert connection.count_free_streams() == 0
    far.limit(5)
    assert connection.count_free_streams() == 5
    assert heard[-1] == 5, "the owner is told of it"


@each_bare_engine
@with_manual_clock
async def test_a_stream_without_a_receiver_does_not_stop_the_peer(make: EngineFactory) -> None:
    far = settled(make)
    connection, receiver = far.connection, RecordingReceiver()
    stream = far.open(receiver, end=False)
    far.send(far.headers(stream, RESPONSE))
    far.streams[stream].receiver = None
    told = list(receiver.events)
    octets = 0
    returned = 0
    for _ in range(200):
        far.send(far.data(stream, bytes(16_384)))
        await loop_idle()  # a read is served in slices, and only for some time in a turn
        octets += 16_384
        seen = far.take()
        assert not codes(seen, "GoAway")
        assert not codes(seen, "RstStream")
        returned += credit(seen, stream)
    assert octets > 3 << 20
    assert returned > octets // 2, "its window, the stream's own, comes back"
    far.send(far.headers(stream, TRAILERS, end=True))
    far.streams[stream].send_data(b"", True)
    far.take()
    assert receiver.events == told
    assert connection.engine.count_open_streams() == 0


@each_bare_engine
@with_manual_clock
async def test_interim_heads_and_ends_without_a_receiver_are_dropped(make: EngineFactory) -> None:
    far = settled(make)
    stream = far.open(end=False)
    far.streams[stream].receiver = None
    far.send(far.headers(stream, [(b":status", b"103", False)]), far.headers(stream, RESPONSE))
    far.send(far.data(stream, end=True), far.reset(stream, ErrorCode.NO_ERROR))
    far.streams[stream].send_data(b"x", True)
    far.take()
    assert far.connection.engine.count_open_streams() == 0
    assert not far.connection.closed


@each_bare_engine
@with_manual_clock
async def test_request_content_is_reported_as_sent_only_while_the_peer_reads(
    make: EngineFactory,
) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.greet()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(receiver, end=False)
    far.take()
    far.transport.reading = False
    for _ in range(8):
        far.streams[stream].send_data(bytes(64 << 10), False)
        far.connection.flush()
    assert receiver.sent_octets < 8 * (64 << 10), "the transport is paused"
    far.transport.read()
    far.transport.reading = True
    far.connection.flush()
    await loop_idle()
    assert receiver.sent_octets == 8 * (64 << 10)


@each_bare_engine
@with_manual_clock
async def test_a_connection_that_runs_out_of_stream_ids_closes_after_its_last_stream(
    make: EngineFactory,
) -> None:
    far, receiver = settled(make, last_stream_id=3), RecordingReceiver()
    far.open(end=True)
    assert far.connection.count_free_streams() > 0
    stream = far.open(receiver)
    assert far.connection.count_free_streams() == 0
    far.take()
    far.send(far.headers(1, RESPONSE, end=True))
    assert not far.connection.closed
    far.send(far.headers(stream, RESPONSE, end=True))
    assert codes(far.take(), "GoAway") == [0]
    assert await far.gone()


# ---- resets


@each_bare_engine
@with_manual_clock
async def test_a_reset_is_reported_with_its_code_and_ends_the_stream(make: EngineFactory) -> None:
    far, refused, cancelled, unknown = settled(make), RecordingReceiver(), RecordingReceiver(), RecordingReceiver()
    streams = [far.open(receiver) for receiver in (refused, cancelled, unknown)]
    for stream, code in zip(streams, (ErrorCode.REFUSED_STREAM, ErrorCode.CANCEL, 0x77), strict=True):
        far.send(far.reset(stream, code))
    assert refused.events == [StreamReset(streams[0], ErrorCode.REFUSED_STREAM, True)]
    assert cancelled.events == [StreamReset(streams[1], ErrorCode.CANCEL, True)]
    assert unknown.events == [StreamReset(streams[2], 0x77, True)]
    assert far.connection.engine.count_open_streams() == 0


@each_bare_engine
@with_manual_clock
async def test_a_protocol_error_of_the_upstream_is_not_reported_as_its_reset(make: EngineFactory) -> None:
    far, receiver, other = settled(make), RecordingReceiver(), RecordingReceiver()
    stream, good = far.open(receiver), far.open(other)
    far.take()
    far.send(far.headers(stream, [(b":status", b"200", False), (b"Upper-Case", b"1", False)]))
    assert receiver.events == [StreamReset(stream, ErrorCode.PROTOCOL_ERROR, False)]
    far.send(far.headers(good, RESPONSE, end=True))
    assert other.events == [HeadReceived(good, RESPONSE, True)], "one stream's fault is one stream's"


# ---- the end


@each_bare_engine
@with_manual_clock
async def test_a_lost_connection_is_reported_to_every_stream_once(make: EngineFactory) -> None:
    far = settled(make)
    receivers = [RecordingReceiver() for _ in range(5)]
    for receiver in receivers:
        far.open(receiver)
    changes: list[bool] = []
    far.connection.owner = Owner(lambda connection: changes.append(connection.closed))
    far.transport.lose(ConnectionResetError(104, "Connection reset by peer"))
    assert far.connection.count_free_streams() == 0, "no request is sent to a transport that is closing"
    assert await far.gone()
    far.connection.connection_lost(None)
    for receiver in receivers:
        assert receiver.kinds == [ConnectionLost]
        assert receiver.failure.code == "upstream-connection-lost"
        assert "https://greeter.example" in str(receiver.failure)
        assert "Connection reset by peer" in str(receiver.failure)
    assert changes == [True]


@each_bare_engine
@with_manual_clock
async def test_eof_from_the_peer_ends_the_connection(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    stream = far.open(receiver)
    far.send(far.headers(stream, RESPONSE), far.data(stream, b"all but the end"))
    assert far.connection.eof_received() is False
    assert far.connection.count_free_streams() == 0
    assert receiver.kinds == [HeadReceived, DataReceived, ConnectionLost]
    assert await far.gone()
    assert receiver.ends == 1


@each_bare_engine
@with_manual_clock
async def test_a_connection_error_is_answered_with_goaway_and_a_close(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.open(receiver)
    far.take()
    far.send(far.data(99, b"on a stream that never was"))
    assert codes(far.take(), "GoAway") == [ErrorCode.PROTOCOL_ERROR]
    assert receiver.kinds == [ConnectionLost]
    assert receiver.failure.code == "upstream-connection-lost"
    assert await far.gone()


@each_bare_engine
@with_manual_clock
async def test_a_peer_that_does_not_speak_http2_is_named_with_the_remedy(make: EngineFactory) -> None:
    far = Far(make, TIMING)
    far.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(UpstreamNotHttp2, match="--use-http2"):
        far.connection.ready.result()
    assert await far.gone()


@each_bare_engine
@with_manual_clock
async def test_a_connection_that_ends_before_it_is_usable_says_so(make: EngineFactory) -> None:
    far = Far(make, TIMING)
    assert far.connection.eof_received() is False
    with pytest.raises(UpstreamConnectionLost, match=r"https://greeter\.example ended before it was usable"):
        far.connection.ready.result()
    far.greet()
    assert far.connection.count_free_streams() == 0, "settings that come too late change nothing"
    assert await far.gone()


@each_bare_engine
@with_manual_clock
async def test_retiring_sends_goaway_and_closes_once(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.open(receiver)
    far.take()
    far.connection.retire("the sidecar is shutting down")
    far.connection.retire("again")
    assert codes(far.take(), "GoAway") == [0]
    assert receiver.kinds == [ConnectionLost]
    assert "the sidecar is shutting down" in str(receiver.failure)
    assert await far.gone()


class Defective(RecordingReceiver):
    """Raises whatever it is told."""

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        raise ZeroDivisionError

    def on_unprocessed(self, spent: bool) -> None:
        raise ZeroDivisionError

    def on_connection_lost(self, failure: Failure) -> None:
        raise ZeroDivisionError


@each_bare_engine
@pytest.mark.parametrize("way", ["head", "goaway", "loss"])
@with_manual_clock
async def test_an_internal_error_in_one_exchange_does_not_affect_the_others(make: EngineFactory, way: str) -> None:
    far = settled(make)
    uncaught: list[object] = []
    far.connection.loop.set_exception_handler(lambda _, context: uncaught.append(context["exception"]))
    receivers: list[RecordingReceiver] = [RecordingReceiver(), Defective(), RecordingReceiver()]
    streams = [far.open(receiver) for receiver in receivers]
    far.take()
    if way == "head":
        far.send(*(far.headers(stream, RESPONSE, end=True) for stream in streams))
    elif way == "goaway":
        far.send(far.go_away(0))
    else:
        far.connection.eof_received()
    expected = {"head": HeadReceived, "goaway": Unprocessed, "loss": ConnectionLost}[way]
    assert [receiver.kinds for receiver in receivers] == [[expected], [InternalError], [expected]]
    assert [type(exc) for exc in uncaught] == [ZeroDivisionError]
    far.connection.retire("enough")
    assert await far.gone()

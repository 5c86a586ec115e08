"""One upstream connection, frame by frame, on every engine."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from proxy.errors import Failure, UpstreamConnectionLost, UpstreamNotHttp2
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.upstream.connection import Timing
from tests.conformance.engines import each_engine
from tests.conformance.raw import RESPONSE, TRAILERS, codes, content, credit, of
from tests.unit.upstream.stage import ORIGIN, Far, Sink, skip, skipping, turns

TIMING = Timing(ping_interval_seconds=30.0, ping_timeout_seconds=15.0, idle_timeout_seconds=180.0)
LAST = (1 << 31) - 1


def made(make: EngineFactory, streams: int | None = None, **given: StreamId) -> Far:
    """A settled connection, its far end in hand."""
    far = Far(make, TIMING, ORIGIN, **given)
    far.greet(streams)
    far.take()
    return far


# ---- streams


@each_engine
@skipping
async def test_it_is_usable_once_the_settings_have_come(make: EngineFactory) -> None:
    far = Far(make, TIMING)
    assert not far.connection.settled.done()
    assert far.take()[0].kind == "Settings"
    far.greet(7)
    assert far.connection.settled.result() is None
    assert far.connection.free_streams == 7
    far.connection.retire("enough")


@each_engine
@skipping
async def test_what_a_stream_brings_goes_to_its_sink_in_order(make: EngineFactory) -> None:
    far, one, other = made(make), Sink(), Sink()
    first, second = far.open(one, end=False), far.open(other)
    far.take()
    interim = [(b":status", b"103", False)]
    far.send(far.headers(first, interim), far.headers(first, RESPONSE), far.headers(second, RESPONSE, end=True))
    far.send(far.data(first, b"abc"), far.headers(first, TRAILERS, end=True))
    assert one.told == [
        ("interim", interim),
        ("head", RESPONSE, False),
        ("data", b"abc", False),
        ("trailers", TRAILERS),
    ]
    assert other.told == [("head", RESPONSE, True)]
    assert far.connection.engine.open_streams == 1, "the first request has not ended"
    far.connection.send_data(first, b"tail", end_stream=True)
    assert content(far.take(), first) == b"tail"
    assert one.sent_octets == 4
    assert far.connection.engine.open_streams == 0


@each_engine
@skipping
async def test_the_streams_that_are_free_follow_the_peers_limit(make: EngineFactory) -> None:
    far = made(make, 3)
    connection = far.connection
    heard: list[int] = []
    connection.on_change = lambda changed: heard.append(changed.free_streams)
    streams = [far.open() for _ in range(2)]
    assert connection.free_streams == 1
    connection.reserved = 1
    assert connection.free_streams == 0
    connection.reserved = 0
    far.limit(1)
    assert connection.free_streams <= 0, "lowered below what is open"
    for stream in streams:
        far.send(far.headers(stream, RESPONSE, end=True))
    assert connection.free_streams == 1
    far.limit(0)
    assert connection.free_streams == 0
    far.limit(5)
    assert connection.free_streams == 5
    assert heard[-1] == 5, "whoever waits is told of it"


@each_engine
@skipping
async def test_a_stream_that_nobody_wants_any_more_does_not_hold_the_peer_up(make: EngineFactory) -> None:
    far = made(make)
    connection, sink = far.connection, Sink()
    stream = far.open(sink, end=False)
    far.send(far.headers(stream, RESPONSE))
    connection.forget(stream)
    told = list(sink.told)
    octets = 0
    returned = 0
    for _ in range(200):
        far.send(far.data(stream, bytes(16_384)))
        octets += 16_384
        seen = far.take()
        assert not codes(seen, "GoAway")
        assert not codes(seen, "RstStream")
        returned += credit(seen, stream)
    assert octets > 3 << 20
    assert returned > octets // 2, "its window, the stream's own, comes back"
    far.send(far.headers(stream, TRAILERS, end=True))
    connection.send_data(stream, b"", end_stream=True)
    far.take()
    far.connection.forget(stream)
    assert sink.told == told
    assert connection.engine.open_streams == 0


@each_engine
@skipping
async def test_interim_heads_and_ends_for_nobody_are_dropped(make: EngineFactory) -> None:
    far = made(make)
    stream = far.open(end=False)
    far.connection.forget(stream)
    far.send(far.headers(stream, [(b":status", b"103", False)]), far.headers(stream, RESPONSE))
    far.send(far.data(stream, end=True), far.reset(stream, ErrorCode.NO_ERROR))
    far.connection.send_data(stream, b"x", end_stream=True)
    far.take()
    assert far.connection.engine.open_streams == 0
    assert not far.connection.closed


@each_engine
@skipping
async def test_request_content_is_reported_when_it_has_left_and_not_while_the_peer_takes_nothing(
    make: EngineFactory,
) -> None:
    far, sink = made(make), Sink()
    far.greet()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(sink, end=False)
    far.take()
    far.transport.reading = False
    for _ in range(8):
        far.connection.send_data(stream, bytes(64 << 10), end_stream=False)
        far.connection.flush()
    assert sink.sent_octets < 8 * (64 << 10), "the transport is paused"
    far.transport.read()
    far.transport.reading = True
    far.connection.flush()
    assert sink.sent_octets == 8 * (64 << 10)


@each_engine
@skipping
async def test_a_connection_with_hardly_any_stream_ids_left_takes_no_more_and_closes_after_the_last(
    make: EngineFactory,
) -> None:
    far, sink = made(make, last_stream_id=3), Sink()
    far.open(end=True)
    assert far.connection.free_streams > 0
    stream = far.open(sink)
    assert far.connection.free_streams == 0
    far.take()
    far.send(far.headers(1, RESPONSE, end=True))
    assert not far.connection.closed
    far.send(far.headers(stream, RESPONSE, end=True))
    far.connection.forget(1)
    far.connection.forget(stream)
    far.connection.flush()
    assert codes(far.take(), "GoAway") == [0]
    assert await far.gone()


# ---- resets


@each_engine
@skipping
async def test_resets_cross_with_their_code_but_refused_means_unprocessed(make: EngineFactory) -> None:
    far, refused, cancelled, unknown = made(make), Sink(), Sink(), Sink()
    streams = [far.open(sink) for sink in (refused, cancelled, unknown)]
    for stream, code in zip(streams, (ErrorCode.REFUSED_STREAM, ErrorCode.CANCEL, 0x77), strict=True):
        far.send(far.reset(stream, code))
    assert refused.told == [("unprocessed",)]
    assert cancelled.told == [("reset", ErrorCode.CANCEL)]
    assert unknown.told == [("reset", 0x77)]
    assert far.connection.engine.open_streams == 0


@each_engine
@skipping
async def test_an_upstream_that_breaks_a_rule_on_a_stream_is_not_blamed_on_the_caller(make: EngineFactory) -> None:
    far, sink, other = made(make), Sink(), Sink()
    stream, good = far.open(sink), far.open(other)
    far.take()
    far.send(far.headers(stream, [(b":status", b"200", False), (b"Upper-Case", b"1", False)]))
    assert sink.told == [("reset", ErrorCode.INTERNAL_ERROR)]
    far.send(far.headers(good, RESPONSE, end=True))
    assert other.told == [("head", RESPONSE, True)], "one stream's fault is one stream's"


# ---- GOAWAY


@each_engine
@skipping
async def test_two_step_goaway_lets_streams_finish_and_then_closes(make: EngineFactory) -> None:
    far = made(make)
    sinks = [Sink() for _ in range(3)]
    streams = [far.open(sink) for sink in sinks]
    far.take()
    far.send(far.go_away(LAST))
    assert far.connection.free_streams == 0
    assert [sink.told for sink in sinks] == [[], [], []]
    far.send(far.go_away(streams[1]))
    assert [sink.told for sink in sinks] == [[], [], [("unprocessed",)]]
    assert codes(of(far.take(), "RstStream", streams[2]), "RstStream") == [ErrorCode.CANCEL]
    for stream in streams[:2]:
        far.send(far.headers(stream, RESPONSE), far.data(stream, b"late", end=True))
    assert not far.connection.closed
    for stream in streams[:2]:
        far.connection.forget(stream)
    assert codes(far.take(), "GoAway") == [0]
    assert await far.gone()
    assert [sink.told[-1] for sink in sinks[:2]] == [("data", b"late", True)] * 2
    assert [sink.ends for sink in sinks] == [0, 0, 1]


@each_engine
@skipping
async def test_many_goaways_tell_each_stream_once(make: EngineFactory) -> None:
    far = made(make)
    sinks = [Sink() for _ in range(8)]
    streams = [far.open(sink) for sink in sinks]
    heard: list[bool] = []
    far.connection.on_change = lambda connection: heard.append(connection.retiring)
    for last in (LAST, streams[6], streams[6], streams[2], LAST, streams[4], 0, 0):
        far.send(far.go_away(last))
    assert [sink.told for sink in sinks] == [[("unprocessed",)]] * 8
    assert all(heard)
    assert await far.gone(), "no stream is left"


@each_engine
@skipping
async def test_goaway_on_a_connection_without_streams_closes_it(make: EngineFactory) -> None:
    far = made(make)
    far.send(far.go_away(0))
    assert far.connection.closed
    assert await far.gone()


@each_engine
@pytest.mark.parametrize(
    ("code", "name"), [(0xB, "ENHANCE_YOUR_CALM"), (0x77, "0x77"), (0x0, None)], ids=["calm", "unknown", "regular"]
)
@skipping
async def test_a_goaway_that_is_not_regular_is_logged_with_what_the_peer_says(
    make: EngineFactory, code: int, name: str | None
) -> None:
    far = made(make)
    with structlog.testing.capture_logs() as lines:
        far.send(far.go_away(0, code, b"too_many_pings\xff\n" + bytes(1000)))
    warnings = [line for line in lines if line["log_level"] == "warning"]
    if name is None:
        assert not warnings
        return
    assert [line["code"] for line in warnings] == [name]
    assert warnings[0]["debug"].startswith("too_many_pings\\xff\n")
    assert len(warnings[0]["debug"]) < 1000


@each_engine
@skipping
async def test_what_an_unprocessed_stream_had_queued_is_dropped(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    stream = far.open(sink, end=False)
    far.connection.send_data(stream, bytes(200 << 10), end_stream=False)
    far.take()
    assert far.connection.engine.queued_octets > 0
    far.send(far.go_away(0))
    far.take()
    assert far.connection.engine.queued_octets == 0
    assert far.budget.queued_octets == 0
    assert await far.gone()


# ---- the end


@each_engine
@skipping
async def test_the_death_of_a_connection_is_told_to_every_stream_once(make: EngineFactory) -> None:
    far = made(make)
    sinks = [Sink() for _ in range(5)]
    for sink in sinks:
        far.open(sink)
    changes: list[bool] = []
    far.connection.on_change = lambda connection: changes.append(connection.closed)
    far.transport.break_off(ConnectionResetError(104, "Connection reset by peer"))
    assert far.connection.free_streams == 0, "nobody is sent to a transport that is closing"
    assert await far.gone()
    far.connection.connection_lost(None)
    for sink in sinks:
        assert [one[:2] for one in sink.told] == [("lost", "upstream-connection-lost")]
        assert "https://greeter.example" in sink.told[0][2]
        assert "Connection reset by peer" in sink.told[0][2]
    assert changes == [True]


@each_engine
@skipping
async def test_the_end_of_the_peers_octets_is_the_end(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    stream = far.open(sink)
    far.send(far.headers(stream, RESPONSE), far.data(stream, b"all but the end"))
    assert far.connection.eof_received() is False
    assert far.connection.free_streams == 0
    assert [one[0] for one in sink.told] == ["head", "data", "lost"]
    assert await far.gone()
    assert sink.ends == 1


@each_engine
@skipping
async def test_a_peer_that_breaks_the_connections_rules_is_told_and_left(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    far.open(sink)
    far.take()
    far.send(far.data(99, b"on a stream that never was"))
    assert codes(far.take(), "GoAway") == [ErrorCode.PROTOCOL_ERROR]
    assert [one[:2] for one in sink.told] == [("lost", "upstream-connection-lost")]
    assert await far.gone()


@each_engine
@skipping
async def test_a_peer_that_does_not_speak_http2_is_named_with_the_remedy(make: EngineFactory) -> None:
    far = Far(make, TIMING)
    far.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(UpstreamNotHttp2, match="--use-http2"):
        far.connection.settled.result()
    assert await far.gone()


@each_engine
@skipping
async def test_a_connection_that_ends_before_it_is_usable_says_so(make: EngineFactory) -> None:
    far = Far(make, TIMING)
    assert far.connection.eof_received() is False
    with pytest.raises(UpstreamConnectionLost, match=r"https://greeter\.example ended before it was usable"):
        far.connection.settled.result()
    far.greet()
    assert far.connection.free_streams == 0, "settings that come too late change nothing"
    assert await far.gone()


@each_engine
@skipping
async def test_to_retire_says_goaway_and_closes_once(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    far.open(sink)
    far.take()
    far.connection.retire("the sidecar is shutting down")
    far.connection.retire("again")
    assert codes(far.take(), "GoAway") == [0]
    assert [one[0] for one in sink.told] == ["lost"]
    assert "the sidecar is shutting down" in sink.told[0][2]
    assert await far.gone()


class Defective(Sink):
    """Fails at whatever it is told."""

    def response_head(self, fields: Fields, end_stream: bool) -> None:
        raise ZeroDivisionError

    def unprocessed(self) -> None:
        raise ZeroDivisionError

    def upstream_lost(self, failure: Failure) -> None:
        raise ZeroDivisionError


@each_engine
@pytest.mark.parametrize("way", ["head", "goaway", "loss"])
@skipping
async def test_a_defect_of_one_exchange_stays_with_it(make: EngineFactory, way: str) -> None:
    far = made(make)
    uncaught: list[object] = []
    far.connection.loop.set_exception_handler(lambda _, context: uncaught.append(context["exception"]))
    sinks: list[Sink] = [Sink(), Defective(), Sink()]
    streams = [far.open(sink) for sink in sinks]
    far.take()
    if way == "head":
        far.send(*(far.headers(stream, RESPONSE, end=True) for stream in streams))
    elif way == "goaway":
        far.send(far.go_away(0))
    else:
        far.connection.eof_received()
    expected = {"head": "head", "goaway": "unprocessed", "loss": "lost"}[way]
    assert [[one[0] for one in sink.told] for sink in sinks] == [[expected], ["broken"], [expected]]
    assert [type(exc) for exc in uncaught] == [ZeroDivisionError]
    far.connection.retire("enough")
    assert await far.gone()


# ---- time


async def whiled_away(far: Far, seconds: float) -> list[bytes]:
    """Let time pass, second by second; return the PINGs that came meanwhile."""
    pings: list[bytes] = []
    for _ in range(int(seconds)):
        await skip(1.0)
        pings += [seen.body for seen in of(far.take(), "Ping") if "ACK" not in seen.flags]
    return pings


@each_engine
@skipping
async def test_without_streams_nobody_pings_and_an_idle_connection_is_closed_in_time(make: EngineFactory) -> None:
    far = made(make)
    assert await whiled_away(far, 175) == []
    assert not far.connection.closed
    assert await whiled_away(far, 6) == []
    assert far.connection.closed
    assert await far.gone()


@each_engine
@skipping
async def test_what_is_used_is_not_idle(make: EngineFactory) -> None:
    far = made(make)
    for _ in range(4):
        assert await whiled_away(far, 120) == []
        stream = far.open()
        far.send(far.headers(stream, RESPONSE, end=True))
        far.connection.forget(stream)
    assert far.connection.free_streams > 0
    await whiled_away(far, 181)
    assert await far.gone()


@each_engine
@skipping
async def test_silence_with_live_streams_is_probed_and_an_answer_is_life(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    far.open(sink)
    far.take()
    probes = 0
    for _ in range(20):
        pings = await whiled_away(far, 32)
        probes += len(pings)
        for payload in pings:
            far.send(far.ping(payload, ack=True))
    assert 10 <= probes <= 20, "one in an interval and no more: too many get ENHANCE_YOUR_CALM"
    assert not sink.told
    far.connection.retire("enough")


@each_engine
@skipping
async def test_a_stream_opened_on_an_old_connection_is_probed_in_time(make: EngineFactory) -> None:
    far = made(make)
    await whiled_away(far, 100)
    far.open()
    far.take()
    assert len(await whiled_away(far, 31)) == 1
    far.connection.retire("enough")


@each_engine
@skipping
async def test_a_peer_that_answers_no_ping_is_given_up(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    far.open(sink)
    far.take()
    assert len(await whiled_away(far, 44)) == 1
    assert not sink.told
    await whiled_away(far, 2)
    assert [one[0] for one in sink.told] == ["lost"]
    assert "no answer to a PING within 15 s" in sink.told[0][2]
    assert await far.gone()
    assert far.transport.aborted, "it would not read a GOAWAY either"


@each_engine
@skipping
async def test_a_probe_from_before_does_not_condemn_the_next_streams(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    stream = far.open()
    far.take()
    [payload] = await whiled_away(far, 31)
    far.connection.reset(stream, ErrorCode.CANCEL)
    far.connection.forget(stream)
    far.take()
    far.send(far.ping(payload, ack=True))
    await whiled_away(far, 20)
    far.open(sink)
    assert await whiled_away(far, 9) == []
    assert not sink.told
    far.connection.retire("enough")


@each_engine
@skipping
async def test_a_peer_that_talks_but_takes_nothing_is_given_up(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(sink, end=False)
    far.take()
    far.transport.reading = False
    for _ in range(20):
        far.connection.send_data(stream, bytes(64 << 10), end_stream=False)
        far.connection.flush()
    for second in range(90):
        await skip(1.0)
        if sink.told:
            break
        far.connection.data_received(far.ping(second.to_bytes(8, "big")).serialize())
    assert second >= 44
    assert [one[0] for one in sink.told] == ["lost"]
    assert "the peer has read nothing for 45 s" in sink.told[0][2]
    assert await far.gone()


@each_engine
@skipping
async def test_a_slow_peer_that_still_reads_is_not_given_up_for_a_ping_that_could_not_leave(
    make: EngineFactory,
) -> None:
    far, sink = made(make), Sink()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(sink, end=False)
    far.take()
    far.transport.reading = False
    far.connection.send_data(stream, bytes(3 << 20), end_stream=False)
    far.connection.flush()
    for _ in range(240):
        await skip(1.0)
        far.transport.read(8 << 10)
    assert sink.told == []
    assert not far.connection.closed
    far.transport.reading = True
    far.transport.read()
    assert not far.connection.closed
    far.connection.retire("enough")
    await turns()


@each_engine
@skipping
async def test_once_the_peer_reads_again_its_silence_counts_again(make: EngineFactory) -> None:
    far, sink = made(make), Sink()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(sink, end=False)
    far.take()
    far.transport.reading = False
    far.connection.send_data(stream, bytes(1 << 20), end_stream=False)
    far.connection.flush()
    await skip(20.0)
    far.transport.reading = True
    far.transport.read()
    await asyncio.sleep(0)
    for _ in range(60):
        await skip(1.0)
    assert [one[0] for one in sink.told] == ["lost"]
    assert "no answer to a PING" in sink.told[0][2]
    assert await far.gone()

"""What an upstream connection does with GOAWAY."""

from __future__ import annotations

import pytest
import structlog

from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from tests.support.loops import with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import DataReceived, HeadReceived, Unprocessed
from tests.support.peers.raw import RESPONSE, codes
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.stage import Owner, settled

LAST = (1 << 31) - 1


# ---- GOAWAY


@each_bare_engine
@with_manual_clock
async def test_two_step_goaway_lets_streams_finish_and_then_closes(make: EngineFactory) -> None:
    far = settled(make)
    receivers = [RecordingReceiver() for _ in range(3)]
    streams = [far.open(receiver) for receiver in receivers]
    far.take()
    far.send(far.go_away(LAST))
    assert far.connection.count_free_streams() == 0
    assert [receiver.events for receiver in receivers] == [[], [], []]
    far.send(far.go_away(streams[1]))
    assert [receiver.events for receiver in receivers] == [[], [], [Unprocessed(streams[2])]]
    assert far.take() == []
    far.send(far.headers(streams[0], RESPONSE), far.data(streams[0], b"late", end=True))
    far.send(far.headers(streams[1], RESPONSE), far.data(streams[1], b"late"))
    assert not far.connection.closed
    assert codes(far.take(), "GoAway") == []
    far.send(far.data(streams[1], end=True))
    assert codes(far.take(), "GoAway") == [0]
    assert await far.gone()
    assert receivers[0].events == [
        HeadReceived(streams[0], RESPONSE, False),
        DataReceived(streams[0], b"late", True),
    ]
    assert receivers[1].events == [
        HeadReceived(streams[1], RESPONSE, False),
        DataReceived(streams[1], b"late", False),
        DataReceived(streams[1], b"", True),
    ]
    assert [receiver.ends for receiver in receivers] == [0, 0, 1]


@each_bare_engine
@with_manual_clock
async def test_many_goaways_are_reported_to_each_stream_once(make: EngineFactory) -> None:
    far = settled(make)
    receivers = [RecordingReceiver() for _ in range(8)]
    streams = [far.open(receiver) for receiver in receivers]
    heard: list[bool] = []
    far.connection.owner = Owner(lambda connection: heard.append(connection.retiring))
    for last in (LAST, streams[6], streams[6], streams[2], LAST, streams[4], 0, 0):
        far.send(far.go_away(last))
    assert [receiver.events for receiver in receivers] == [[Unprocessed(stream)] for stream in streams]
    assert all(heard)
    assert await far.gone(), "no stream is left"


@each_bare_engine
@with_manual_clock
async def test_goaway_on_a_connection_without_streams_closes_it(make: EngineFactory) -> None:
    far = settled(make)
    far.send(far.go_away(0))
    assert far.connection.closed
    assert await far.gone()


@each_bare_engine
@pytest.mark.parametrize(
    ("code", "name"), [(0xB, "ENHANCE_YOUR_CALM"), (0x77, "0x77"), (0x0, None)], ids=["calm", "unknown", "regular"]
)
@with_manual_clock
async def test_a_goaway_with_an_error_code_is_logged_with_its_debug_data(
    make: EngineFactory, code: int, name: str | None
) -> None:
    far = settled(make)
    with structlog.testing.capture_logs() as lines:
        far.send(far.go_away(0, code, b"too_many_pings\xff\n" + bytes(1000)))
    warnings = [line for line in lines if line["log_level"] == "warning"]
    if name is None:
        assert not warnings
        return
    assert [line["code"] for line in warnings] == [name]
    assert warnings[0]["debug"].startswith("too_many_pings\\xff\n")
    assert len(warnings[0]["debug"]) < 1000


@each_bare_engine
@with_manual_clock
async def test_requests_that_are_lost_after_goaway_with_an_error_name_it(make: EngineFactory) -> None:
    # As nginx 1.22 answers trailers of a request, and then closes.
    far, receiver = settled(make), RecordingReceiver()
    stream = far.open(receiver)
    far.send(far.go_away(stream, ErrorCode.PROTOCOL_ERROR), far.go_away(stream))
    far.connection.eof_received()
    assert str(receiver.failure).endswith("was lost: closed by the peer, after GOAWAY with PROTOCOL_ERROR")


@each_bare_engine
@with_manual_clock
async def test_the_queued_content_of_an_unprocessed_stream_is_dropped(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    stream = far.open(receiver, end=False)
    far.streams[stream].send_data(bytes(200 << 10), False)
    far.take()
    assert far.connection.engine.count_queued_octets() > 0
    far.send(far.go_away(0))
    far.take()
    assert far.connection.engine.count_queued_octets() == 0
    assert far.budget.queued_octets == 0
    assert await far.gone()

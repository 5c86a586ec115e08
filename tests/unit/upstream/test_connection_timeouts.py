"""When an upstream connection sends PING, and when it closes: idle, silent, or with a peer that does not read."""

from __future__ import annotations

import pytest

from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import ConnectionLost
from tests.support.peers.raw import RESPONSE, of
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.stage import Far, settled


async def whiled_away(far: Far, seconds: float) -> list[bytes]:
    """Let time pass, second by second; return the PINGs that came meanwhile."""
    pings: list[bytes] = []
    for _ in range(int(seconds)):
        await skip(1.0)
        pings += [seen.body for seen in of(far.take(), "Ping") if "ACK" not in seen.flags]
    return pings


@each_bare_engine
@with_manual_clock
async def test_an_idle_connection_is_not_pinged_and_is_closed_in_time(make: EngineFactory) -> None:
    far = settled(make)
    assert await whiled_away(far, 175) == []
    assert not far.connection.closed
    assert await whiled_away(far, 6) == []
    assert far.connection.closed
    assert await far.gone()


@each_bare_engine
@with_manual_clock
async def test_a_connection_in_use_is_not_idle(make: EngineFactory) -> None:
    far = settled(make)
    for _ in range(4):
        assert await whiled_away(far, 120) == []
        stream = far.open()
        far.send(far.headers(stream, RESPONSE, end=True))
    assert far.connection.count_free_streams() > 0
    await whiled_away(far, 181)
    assert await far.gone()


@each_bare_engine
@with_manual_clock
async def test_a_silent_connection_with_live_streams_is_pinged_and_kept_if_it_answers(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.open(receiver)
    far.take()
    probes = 0
    for _ in range(20):
        pings = await whiled_away(far, 32)
        probes += len(pings)
        for payload in pings:
            far.send(far.ping(payload, ack=True))
    assert 10 <= probes <= 20, "one in an interval and no more: too many get ENHANCE_YOUR_CALM"
    assert not receiver.events
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_a_connection_is_pinged_in_time_after_a_late_stream_was_opened(make: EngineFactory) -> None:
    far = settled(make)
    await whiled_away(far, 100)
    far.open()
    far.take()
    assert len(await whiled_away(far, 31)) == 1
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_a_connection_without_a_ping_answer_is_closed(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.open(receiver)
    far.take()
    assert len(await whiled_away(far, 44)) == 1
    assert not receiver.events
    await whiled_away(far, 2)
    assert receiver.kinds == [ConnectionLost]
    assert "no answer to a PING within 15 s" in str(receiver.failure)
    assert await far.gone()
    assert far.transport.aborted, "it would not read a GOAWAY either"


@each_bare_engine
@with_manual_clock
@pytest.mark.parametrize(("begin", "open_seconds", "pause_seconds"), [(0, 1, 2), (0, 5, 5), (15, 5, 5), (22, 5, 15)])
async def test_a_silent_connection_is_closed_although_each_request_on_it_is_cancelled_soon(
    make: EngineFactory, begin: int, open_seconds: int, pause_seconds: int
) -> None:
    far = settled(make)
    await whiled_away(far, begin)
    seconds = begin
    while not far.connection.closed:
        stream = far.open()
        await whiled_away(far, open_seconds)
        if not far.connection.closed:
            far.streams[stream].reset(ErrorCode.CANCEL, False)
            await whiled_away(far, pause_seconds)
        seconds += open_seconds + pause_seconds
    assert seconds <= begin + 60, "an interval, a timeout, and one request more"


@each_bare_engine
@with_manual_clock
async def test_a_connection_is_kept_after_a_cancelled_request_if_the_peer_is_heard(make: EngineFactory) -> None:
    far = settled(make)
    stream = far.open()
    await whiled_away(far, 5)
    far.streams[stream].reset(ErrorCode.CANCEL, False)
    far.send(far.ping())
    assert await whiled_away(far, 175) == []
    assert not far.connection.closed
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_an_earlier_unanswered_ping_does_not_close_later_streams(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    stream = far.open()
    far.take()
    [payload] = await whiled_away(far, 31)
    far.streams[stream].reset(ErrorCode.CANCEL, False)
    far.take()
    far.send(far.ping(payload, ack=True))
    await whiled_away(far, 20)
    far.open(receiver)
    assert await whiled_away(far, 9) == []
    assert not receiver.events
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_a_peer_that_sends_but_does_not_read_is_closed(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(receiver, end=False)
    far.take()
    far.transport.reading = False
    for _ in range(20):
        far.streams[stream].send_data(bytes(64 << 10), False)
        far.connection.flush()
    for second in range(90):
        await skip(1.0)
        if receiver.events:
            break
        far.connection.data_received(far.ping(second.to_bytes(8, "big")).serialize())
    assert second >= 44
    assert receiver.kinds == [ConnectionLost]
    assert "the peer has read nothing for 45 s" in str(receiver.failure)
    assert await far.gone()


@each_bare_engine
@with_manual_clock
async def test_a_slow_peer_is_not_closed_for_a_ping_that_could_not_be_written(
    make: EngineFactory,
) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(receiver, end=False)
    far.take()
    far.transport.reading = False
    far.streams[stream].send_data(bytes(3 << 20), False)
    far.connection.flush()
    for _ in range(240):
        await skip(1.0)
        far.transport.read(8 << 10)
    assert receiver.events == []
    assert not far.connection.closed
    far.transport.reading = True
    far.transport.read()
    assert not far.connection.closed
    far.connection.retire("enough")
    await loop_idle()


@each_bare_engine
@with_manual_clock
async def test_the_ping_timeout_starts_again_once_the_peer_reads(make: EngineFactory) -> None:
    far, receiver = settled(make), RecordingReceiver()
    far.send(far.settings({0x4: 4 << 20}), far.window(0, 4 << 20))
    stream = far.open(receiver, end=False)
    far.take()
    far.transport.reading = False
    far.streams[stream].send_data(bytes(1 << 20), False)
    far.connection.flush()
    await skip(20.0)
    far.transport.reading = True
    far.transport.read()
    await loop_idle()
    for _ in range(60):
        await skip(1.0)
    assert receiver.kinds == [ConnectionLost]
    assert "no answer to a PING" in str(receiver.failure)
    assert await far.gone()

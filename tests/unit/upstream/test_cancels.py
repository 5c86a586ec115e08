"""Cancelled requests on their way to one upstream connection: some are reset at once, the others later."""

from __future__ import annotations

from proxy.errors import Overloaded
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode, StreamId
from proxy.upstream.connection import Timing
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.raw import RESPONSE, of
from tests.unit.upstream.stage import Far

PER_MINUTE = 60
"""One a second, after the first sixty."""


def opened(make: EngineFactory, streams: int) -> tuple[Far, list[StreamId]]:
    """Return a connection with so many live streams."""
    far = Far(make, Timing(cancels_per_minute=PER_MINUTE))
    far.greet(1_000)
    ids = [far.open() for _ in range(streams)]
    far.take()
    return far, ids


def cancel(far: Far, streams: list[StreamId], owner: object = "client") -> None:
    for stream in streams:
        far.connection.cancels.cancel(far.streams[stream], ErrorCode.CANCEL, owner)


def resets(far: Far) -> list[StreamId]:
    """Return the streams whose reset has come since the last call."""
    return [seen.stream_id for seen in of(far.take(), "RstStream")]


@each_bare_engine
@with_manual_clock
async def test_resets_beyond_the_limit_are_sent_one_by_one_in_their_order(make: EngineFactory) -> None:
    far, streams = opened(make, 63)
    cancel(far, streams)
    assert far.connection.cancels.held == 3
    assert resets(far) == streams[:60]
    assert far.connection.engine.count_open_streams() == 3
    await skip(0.9)
    assert resets(far) == []
    for stream in streams[60:]:
        await skip(1.0)
        assert resets(far) == [stream]
    assert far.connection.cancels.held == 0
    cancel(far, [later := far.open()])
    assert resets(far) == []
    await skip(1.0)
    assert resets(far) == [later]
    far.send(far.ping())  # It is not dead.
    await skip(60.0)
    cancel(far, [late := far.open()])
    assert resets(far) == [late]
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_what_comes_on_a_stream_that_is_held_back_is_dropped_and_its_window_stays_closed(
    make: EngineFactory,
) -> None:
    far, streams = opened(make, 64)
    cancel(far, streams)
    far.take()
    data, head, trailers, lost = streams[60:]
    far.send(
        far.headers(data, [(b":status", b"103", False)]),
        far.headers(data, RESPONSE),
        far.data(data, bytes(16_000)),
        far.headers(head, RESPONSE, end=True),
        far.headers(trailers, RESPONSE),
        far.headers(trailers, [(b"x-sum", b"1", False)], end=True),
        far.reset(lost, 8),
    )
    await loop_idle()  # so much is read in slices
    assert far.connection.engine.count_open_streams() == 1
    assert far.connection.cancels.held == 1
    assert far.connection.engine.owed_octets == 0
    assert not of(far.take(), "WindowUpdate", data)
    # Streams that have ended need no reset, and use up nothing.
    await skip(1.0)
    assert resets(far) == [data]
    await skip(1.0)
    assert far.connection.cancels.held == 0
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_a_stream_that_is_held_back_is_reset_when_one_is_needed(make: EngineFactory) -> None:
    far, streams = opened(make, 63)
    cancel(far, streams)
    far.take()
    far.send(far.reset(streams[60], 8))
    assert far.connection.cancels.release()
    assert resets(far) == [streams[61]]
    held = far.streams[streams[62]].receiver
    assert held is not None
    assert held.owner() == "client"
    held.on_evicted(Overloaded("a stream is needed"))
    assert resets(far) == [streams[62]]
    assert not far.connection.cancels.release()
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_a_stream_whose_content_waits_is_reset_at_once_because_of_the_memory(make: EngineFactory) -> None:
    far, streams = opened(make, 60)
    uploads = [far.open(end=False) for _ in range(2)]
    for stream, octets in zip(uploads, (35_000, 100_000), strict=True):
        far.streams[stream].send_data(bytes(octets), False)
    far.connection.flush()
    far.take()
    cancel(far, [*streams, *uploads])
    assert resets(far) == [*streams, uploads[1]]
    assert all(far.streams[stream].receiver is None for stream in streams)
    assert far.connection.engine.count_queued_octets() <= 16 << 10
    far.connection.retire("enough")


@each_bare_engine
@with_manual_clock
async def test_streams_that_are_held_back_end_with_their_connection(make: EngineFactory) -> None:
    far, streams = opened(make, 62)
    cancel(far, streams)
    far.send(far.go_away(streams[60]))
    assert far.connection.cancels.held == 1
    assert far.connection.engine.count_open_streams() == 1
    far.transport.lose(None)
    assert await far.gone()
    assert far.connection.cancels.held == 0

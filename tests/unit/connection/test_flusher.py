"""All connections of a worker are flushed by one call of the loop a turn, or behind a read that is alone in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from hyperframe.frame import PingFrame

from proxy.connection.flusher import Flushable, Flusher
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import StreamReceiver
from tests.support.loops import ManualLoop
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.transport import MemoryTransport
from tests.unit.connection.stage import Defect, Pair, Receiver


class CountingFlusher(Flusher):
    """A flusher that counts how often the loop has called it."""

    def __init__(self, loop: ManualLoop) -> None:
        super().__init__(loop)
        self.calls = 0

    def flush(self) -> None:
        self.calls += 1
        super().flush()


class BrokenTransport(MemoryTransport):
    """A transport to which nothing can be written."""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        raise Defect


@contextmanager
def connections(make: EngineFactory, count: int) -> Iterator[tuple[ManualLoop, CountingFlusher, list[Pair]]]:
    """Connections of one worker, all of them at rest."""
    loop = ManualLoop()
    flusher = CountingFlusher(loop)
    pairs = [Pair(make, flusher=flusher) for _ in range(count)]
    with ExitStack() as stack:
        stack.callback(loop.close)
        for pair in pairs:
            stack.callback(pair.end)
        yield loop, flusher, pairs


@each_bare_engine
def test_one_callback_flushes_all_connections_that_have_something_to_write(make: EngineFactory) -> None:
    with connections(make, 5) as (loop, flusher, pairs):
        *busy, idle = pairs
        ids = [pair.answered(b"content") for pair in busy]
        written = [pair.transport.written for pair in pairs]
        flushes = [pair.server.flushes for pair in pairs]
        flusher.calls = 0
        flusher.now()  # needs the end of the turn, too
        loop.turn()
        assert flusher.calls == 1
        assert [pair.server.flushes - before for pair, before in zip(pairs, flushes, strict=True)] == [1, 1, 1, 1, 0]
        assert all(pair.transport.written > before for pair, before in zip(busy, written, strict=False))
        assert idle.transport.written == written[-1]
        loop.turn()
        assert flusher.calls == 1, "nothing is due any more"
        for pair, stream_id in zip(busy, ids, strict=True):
            pair.down()
            assert pair.client.streams[stream_id].content == b"content"


@each_bare_engine
def test_a_flush_that_raises_does_not_stop_the_others(make: EngineFactory) -> None:
    with connections(make, 3) as (loop, flusher, pairs):
        first, broken, last = pairs
        broken.transport = BrokenTransport(loop, broken.server.as_protocol())
        broken.server.connection_made(broken.transport)
        loop.turn()
        assert first.errors() == [], "there was nothing to write"
        flusher.calls = 0
        ids = [pair.answered(b"content") for pair in (first, broken, last)]
        loop.turn()
        assert flusher.calls == 1
        assert first.errors() == [Defect]
        for pair, stream_id in ((first, ids[0]), (last, ids[2])):
            pair.down()
            assert pair.client.streams[stream_id].content == b"content"
        # Octets are lost: what came behind them would be read as something else.
        assert broken.transport.aborted
        assert not first.transport.aborted


@each_bare_engine
def test_octets_queued_during_a_flush_leave_in_the_next_turn(make: EngineFactory) -> None:
    class Forwarding(Receiver):
        def on_response_sent(self, octets: int) -> None:
            other.server.streams[there].send_data(b"after", False)

    with connections(make, 2) as (loop, flusher, (one, other)):
        here, there = one.answered(b"first"), other.answered(b"first")
        for pair in (other, one):  # the other one has been flushed by then
            pair.down()
        receiver: StreamReceiver = Forwarding(one.server, here)
        one.server.streams[here].receiver = receiver
        one.server.streams[here].send_data(b"second", False)
        written = other.transport.written
        flusher.calls = 0
        loop.turn()
        assert (flusher.calls, other.transport.written) == (1, written)
        loop.turn()
        assert flusher.calls == 2
        other.client.receive(other.transport.read())
        assert other.client.streams[there].content == b"firstafter"


@each_bare_engine
def test_a_connection_that_is_closed_before_its_flush_is_left_out(make: EngineFactory) -> None:
    with connections(make, 2) as (loop, _, (one, other)):
        last, stream_id = one.answered(b"last"), other.answered(b"content")
        one.server.close("enough")
        written = one.transport.written
        loop.turn()
        assert one.transport.written == written
        other.down()
        assert other.client.streams[stream_id].content == b"content"
        one.down()
        assert one.client.streams[last].content == b"last"
        assert one.errors() == []


class Noting(Flushable):
    """Counts its flushes."""

    def __init__(self) -> None:
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


def read(flusher: Flusher, connection: Flushable, octets: int = 100) -> None:
    """Read so many octets on a connection, which make another one due."""
    flusher.begin_read()
    flusher.add(connection)
    flusher.end_read(octets)


@contextmanager
def quiet_worker() -> Iterator[tuple[ManualLoop, Flusher, Noting]]:
    """A worker whose loop has had one read a turn for long, and so flushes as soon as it has read."""
    loop = ManualLoop()
    flusher, connection = Flusher(loop), Noting()
    with closing(loop):
        flushes_at_once = 0
        while not flushes_at_once:
            before = connection.flushes
            read(flusher, connection)
            flushes_at_once = connection.flushes - before
            loop.turn()
            assert connection.flushes == before + 1
            assert connection.flushes < 100
        yield loop, flusher, connection


def test_a_read_that_is_alone_in_its_turn_is_not_flushed_at_once_before_many_such_turns() -> None:
    with quiet_worker() as (_, _, connection):
        assert connection.flushes > 16


@each_bare_engine
def test_what_a_connection_answers_is_written_at_once_while_it_reads_alone(make: EngineFactory) -> None:
    with connections(make, 1) as (_, _, (pair,)):
        at_once = []
        for _ in range(40):
            pair.client.raw(PingFrame(0, b"12345678"))
            written = pair.transport.written
            pair.up()
            at_once.append(pair.transport.written > written)
            pair.transport.read()
            pair.loop.turn()
            pair.transport.read()
        assert not any(at_once[:10])
        assert sum(at_once[20:]) > 15


def test_one_flush_follows_all_reads_of_a_turn_as_soon_as_there_are_several() -> None:
    with quiet_worker() as (loop, flusher, connection):
        turns_with_several_flushes = 0
        for _ in range(100):
            before = connection.flushes
            for _ in range(2):
                read(flusher, connection)
            turns_with_several_flushes += connection.flushes > before
            loop.turn()
            assert connection.flushes > before
        assert turns_with_several_flushes < 20, "now and then it looks whether it is still alone"


def test_a_large_read_is_flushed_at_the_end_of_its_turn() -> None:
    with quiet_worker() as (loop, flusher, connection):
        before = connection.flushes
        read(flusher, connection, 10_000)
        assert connection.flushes == before
        loop.turn()
        assert connection.flushes == before + 1


def test_what_is_due_for_another_reason_is_flushed_at_the_end_of_the_turn() -> None:
    with quiet_worker() as (loop, flusher, connection):
        before = connection.flushes
        flusher.add(connection)
        assert connection.flushes == before
        loop.turn()
        assert connection.flushes == before + 1


def test_the_time_of_a_turn_is_asked_anew_after_a_flush_at_once() -> None:
    with quiet_worker() as (loop, flusher, _):
        flusher.begin_read()
        first = flusher.now()
        loop.advance(5.0)
        assert flusher.now() == first
        flusher.end_read(100)
        loop.turn()
        assert flusher.now() == first + 5.0
        loop.advance(5.0)
        loop.turn()
        assert flusher.now() == first + 10.0, "without a read, too"

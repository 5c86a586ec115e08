"""What the listener knows of an accepted connection by HTTP/2, and how it ends one."""

from __future__ import annotations

import asyncio
import math

from hyperframe.frame import ContinuationFrame, HeadersFrame

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.downstream.admission import AcceptedConnection
from proxy.downstream.connection import DownstreamConnection
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.acceptor import RequestQueue
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.raw import PREFACE, REQUEST, RawConnectionPeer, codes


class Client(RawConnectionPeer):
    """The client of an accepted connection, which speaks HTTP/2."""

    def __init__(self, make: EngineFactory) -> None:
        self.relay = RequestQueue(acknowledging=True)
        self.connection = DownstreamConnection(
            lambda handler: make(client=False, limits=Limits(), handler=handler),
            Budget(1 << 20),
            Flusher(asyncio.get_running_loop()),
            acceptor=self.relay,
            on_change=lambda: None,
        )
        super().__init__(self.connection, expects_preface=False)
        self.accepted = AcceptedConnection(self.transport, 0.0)
        self.accepted.protocol_unknown = False
        self.accepted.h2c = self.connection
        self.send(PREFACE, self.settings({}))


@each_bare_engine
@with_manual_clock
async def test_a_connection_is_idle_since_its_last_request_while_none_is_live(make: EngineFactory) -> None:
    near = Client(make)
    assert near.accepted.idle_since == math.inf
    assert not near.accepted.used
    await skip(5.0)
    near.send(near.headers(1, REQUEST, end=True))
    assert near.accepted.idle_since == math.inf
    assert near.accepted.used
    (await near.relay.request()).answer(b"well")
    near.take()
    assert near.accepted.idle_since == 5.0
    assert near.accepted.has_been_idle(5.0)
    assert not near.accepted.has_been_idle(4.9)
    near.connection.close("the test is over")
    assert near.accepted.idle_since == math.inf, "it needs not give way"
    await loop_idle()


@each_bare_engine
@with_manual_clock
async def test_one_that_gives_way_is_closed_soon_even_if_its_client_does_not_read(make: EngineFactory) -> None:
    near = Client(make)
    near.transport.reading = False
    near.accepted.give_way()
    assert codes(near.take(), "GoAway") == [0]
    await skip(0.4)
    assert not near.transport.aborted
    await skip(0.2)
    assert near.transport.aborted


@each_bare_engine
@with_manual_clock
async def test_one_that_is_cut_off_ends_at_once_with_its_requests(make: EngineFactory) -> None:
    near = Client(make)
    near.send(near.headers(1, REQUEST, end=True))
    taken = await near.relay.request()
    why: list[str] = []
    near.connection.on_cut_off = lambda code, reason: why.append(reason)
    near.accepted.cut_off()
    assert near.transport.aborted
    assert taken.reset.done()
    assert why == ["its address has most of all connections (max_connections)"]
    await loop_idle()


@each_bare_engine
@with_manual_clock
async def test_a_field_block_is_late_when_it_has_been_unfinished_for_so_long(make: EngineFactory) -> None:
    near = Client(make)
    assert not near.accepted.has_late_block(100.0, 30.0), "there is none"
    block = near.block(REQUEST)
    near.send(HeadersFrame(1, block[:5], flags=["END_STREAM"]))
    assert not near.accepted.has_late_block(110.0, 30.0), "it may have begun just now"
    assert not near.accepted.has_late_block(139.0, 30.0)
    assert near.accepted.has_late_block(140.0, 30.0)
    near.send(ContinuationFrame(1, block[5:], flags=["END_HEADERS"]), HeadersFrame(3, near.block(REQUEST)[:5]))
    assert not near.accepted.has_late_block(150.0, 30.0), "it is another one"
    assert near.accepted.has_late_block(180.0, 30.0)
    near.connection.abort()
    await loop_idle()

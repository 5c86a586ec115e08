"""Both engines report and send the same, whatever the peer does and whatever they are told to.

`tests.fuzz.twins` is the two of them as one engine, which fails where they differ; it lists the few places where the
contract lets them.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http2.engine import Limits
from tests.fuzz.case import Case
from tests.fuzz.twins import Diverged, Twins, compare
from tests.support.peers.engines import ENGINES, EventFactory
from tests.support.peers.events import ConnectionFailed, DataReceived, Event, HeadReceived, StreamReset
from tests.support.peers.raw import REQUEST, RESPONSE, RawPeer


@given(number=st.integers(0, 1 << 64))
@settings(max_examples=600)
def test_both_engines_report_and_send_the_same(number: int) -> None:
    with suppress(Diverged):
        Case(Twins, number).run()


@pytest.mark.parametrize("sender", ENGINES, ids=lambda make: str(make.name))
def test_either_engine_understands_the_other(sender: EventFactory) -> None:
    for receiver in ENGINES:
        client, server = sender(client=True, limits=Limits()), receiver(client=False, limits=Limits())
        stream_id = client.send_request(REQUEST, end_stream=False)
        client.send_data(stream_id, bytes(40_000), end_stream=True)
        events = server.receive(client.take()[0])
        assert HeadReceived(stream_id, REQUEST, False) in events
        assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) == 40_000
        server.send_head(stream_id, RESPONSE, end_stream=True)
        assert HeadReceived(stream_id, RESPONSE, True) in client.receive(server.take()[0])
        assert client.open_streams == server.open_streams == 0


def test_the_comparison_fails_if_events_differ() -> None:
    told: list[Event] = [HeadReceived(1, REQUEST, False), StreamReset(1, 8, True)]
    compare(told, list(told))
    others: list[list[Event]] = [told[:1], [], told[::-1], [told[0], StreamReset(1, 8, False)]]
    others.append([*told, ConnectionFailed(1, "why")])
    for other in others:
        with pytest.raises(AssertionError):
            compare(told, other)
        with pytest.raises(AssertionError):
            compare(other, told)


def test_two_engines_side_by_side_work_like_one() -> None:
    peer = RawPeer(Twins, engine_is_client=False)
    peer.open()
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    peer.engine.send_data(1, b"whole", end_stream=True)
    assert [one.kind for one in peer.take()] == ["Headers", "Data"]
    assert peer.sent == [(1, 5)]

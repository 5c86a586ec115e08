"""GOAWAY, in either direction, ends no stream (RFC 9113, 6.8)."""

from __future__ import annotations

import pytest
from hyperframe.frame import SettingsFrame

from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import DataReceived, GoAwayReceived, HeadReceived, TrailersReceived
from tests.support.peers.raw import REQUEST, RESPONSE, RawPeer, codes, content, credit, of


@each_engine
def test_streams_go_on_after_the_peers_goaway(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.asked()
    peer.engine.send_data(1, b"queued", end_stream=False)
    assert peer.send(peer.go_away(3, 0, b"bye")) == [GoAwayReceived(3, 0, b"bye")]
    assert not peer.engine.free_streams
    with pytest.raises(RuntimeError):
        peer.asked()
    peer.engine.send_data(1, b" and more", end_stream=True)
    assert content(peer.take(), 1) == b"queued and more"
    assert peer.send(peer.headers(1, RESPONSE), peer.data(1, b"answer", end=True)) == [
        HeadReceived(1, RESPONSE, False),
        DataReceived(1, b"answer", True),
    ]
    assert peer.engine.open_streams == 1
    assert peer.send(peer.ping()) == []
    assert of(peer.take(), "Ping")


@each_engine
def test_goaway_may_come_in_two_steps(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.asked()
    assert peer.send(peer.go_away((1 << 31) - 1)) == [GoAwayReceived((1 << 31) - 1, 0, b"")]
    assert peer.send(peer.go_away(1, 11)) == [GoAwayReceived(1, 11, b"")]
    assert peer.send(peer.headers(1, RESPONSE, end=True)) == [HeadReceived(1, RESPONSE, True)]


@each_engine
def test_unprocessed_streams_stay_open_until_they_are_reset(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.asked()
    assert peer.send(peer.go_away(1)) == [GoAwayReceived(1, 0, b"")]
    assert peer.engine.open_streams == 2
    peer.engine.reset(3, 8)
    peer.take()
    assert peer.engine.open_streams == 1


@each_engine
def test_the_reset_of_an_unprocessed_stream_sends_nothing(make: EventFactory) -> None:
    # Go before 1.20 takes it for a reset of an idle stream, and ends the connection with all other streams.
    peer = RawPeer(make, engine_is_client=True)
    for _ in range(4):
        peer.asked()
    peer.send(peer.go_away(5))
    peer.engine.reset(7, 8)
    peer.engine.reset(5, 8)
    peer.send(peer.go_away(1))
    peer.engine.reset(3, 8)
    peer.engine.reset(1, 8)
    assert [one.stream_id for one in of(peer.take(), "RstStream")] == [5, 1]
    assert peer.engine.open_streams == 0


@each_engine
def test_a_server_continues_its_streams_after_goaway_of_the_client(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    assert peer.send(peer.go_away(0)) == [GoAwayReceived(0, 0, b"")]
    assert peer.send(peer.data(1, b"x", end=True)) == [DataReceived(1, b"x", True)]
    peer.engine.send_head(1, RESPONSE, end_stream=True)
    assert [one.ends for one in of(peer.take(), "Headers")] == [True]


@each_engine
def test_a_server_resets_its_streams_after_goaway_of_the_client(make: EventFactory) -> None:
    # The last stream that a client names is one of the server's: of its requests it says nothing.
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    peer.send(peer.go_away(0))
    peer.engine.reset(1, 2)
    assert codes(of(peer.take(), "RstStream", 1), "RstStream") == [2]


@each_engine
def test_our_goaway_names_the_last_stream_processed(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    peer.open(5)
    peer.engine.go_away(0, b"closing time")
    (seen,) = of(peer.take(), "GoAway")
    assert seen.body == (5).to_bytes(4, "big") + bytes(4) + b"closing time"


@each_engine
def test_streams_go_on_after_our_goaway_and_new_ones_are_refused(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    peer.engine.go_away(0)
    peer.take()
    assert peer.open(3) == []
    assert peer.send(peer.data(3, b"late", end=True)) == []
    seen = peer.take()
    assert [(one.stream_id, *codes([one], "RstStream")) for one in of(seen, "RstStream")] == [(3, 7)]
    assert peer.send(peer.data(1, b"x", end=True)) == [DataReceived(1, b"x", True)]
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    peer.engine.send_data(1, b"answer", end_stream=True)
    seen = peer.take()
    assert of(seen, "Headers")[0].fields == RESPONSE
    assert content(seen, 1) == b"answer"
    assert peer.engine.open_streams == 0
    peer.engine.go_away(0)
    (seen_again,) = of(peer.take(), "GoAway")
    assert seen_again.body[:4] == (1).to_bytes(4, "big")


@each_engine
def test_refused_requests_do_not_break_the_compression_state(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    peer.engine.go_away(0)
    peer.open(3, [*REQUEST, (b"x-new", b"entered in a refused request", False)])
    trailers = [(b"x-new", b"entered in a refused request", False)]
    (event,) = peer.send(peer.headers(1, trailers, end=True))
    assert event == TrailersReceived(1, trailers)


@each_engine
def test_content_of_refused_requests_is_given_back_to_the_connection_window(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.engine.go_away(0)
    peer.open(1)
    returned = 0
    for _ in range(1_200):
        assert peer.send(peer.data(1, bytes(16_384))) == []
        returned += credit(peer.take(), 0)
    assert returned > 0


@each_engine
def test_a_client_that_sent_goaway_opens_no_more_streams(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.engine.go_away(0)
    (seen,) = of(peer.take(), "GoAway")
    assert seen.body == bytes(8)
    assert not peer.engine.free_streams
    assert peer.send(peer.headers(1, RESPONSE, end=True)) == [HeadReceived(1, RESPONSE, True)]


@each_engine
def test_streams_are_served_between_our_two_goaways(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    peer.engine.announce_go_away()
    peer.engine.ping(b"retiring")
    announced = peer.take()
    (first,) = of(announced, "GoAway")
    assert first.body == b"\x7f\xff\xff\xff" + bytes(4)
    assert announced.index(first) < announced.index(of(announced, "Ping")[0])
    assert peer.open(3) == [HeadReceived(3, REQUEST, False)]
    peer.engine.go_away(0)
    (last,) = of(peer.take(), "GoAway")
    assert last.body[:4] == (3).to_bytes(4, "big")
    assert peer.open(5) == []
    seen = peer.take()
    assert [(one.stream_id, *codes([one], "RstStream")) for one in of(seen, "RstStream")] == [(5, 7)]
    for stream in (1, 3):
        peer.engine.send_head(stream, RESPONSE, end_stream=True)
    assert [(one.stream_id, one.ends) for one in of(peer.take(), "Headers")] == [(1, True), (3, True)]


@each_engine
def test_a_first_goaway_after_the_last_takes_nothing_back(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    peer.engine.go_away(0)
    peer.engine.announce_go_away()
    peer.take()
    assert peer.open(3) == []
    assert codes(peer.take(), "RstStream") == [7]


@each_engine
def test_streams_that_come_after_none_are_offered_are_served(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    peer.take()
    peer.engine.offer_no_streams()
    (sent,) = of(peer.take(), "Settings")
    assert sent.body == b"\0\x03" + bytes(4)
    assert peer.send(SettingsFrame(flags=["ACK"])) == []
    assert peer.open(3) == [HeadReceived(3, REQUEST, False)]
    assert peer.engine.open_streams == 2

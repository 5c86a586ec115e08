"""Much content through small windows, with a slow reader: what is queued stays within the windows."""

from __future__ import annotations

from hashlib import sha256

from proxy.http2.engine import Limits
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.memory import Joined
from tests.support.peers.raw import REQUEST, RESPONSE, line

MEBI = 1 << 20


@each_engine
def test_64_mebioctets_arrive_unchanged_and_at_most_one_window_of_them_is_queued(make: EventFactory) -> None:
    window = 256 << 10
    joined = Joined(make, server_limits=Limits(stream_window_octets=window, connection_window_octets=MEBI))
    client, server = joined.client.engine, joined.server.engine
    stream_id = client.send_request([*REQUEST, line(b"content-length", b"%d" % (64 * MEBI))], end_stream=False)
    joined.run()
    chunk = bytes(range(256)) * 128
    digest, expected = sha256(), sha256()
    queued = received = most = 0
    while received < 64 * MEBI:
        # A sender as the relay is one: never more unsent content than one window.
        while queued < 64 * MEBI and queued - joined.client.sent[stream_id] < window:
            client.send_data(stream_id, chunk, end_stream=queued + len(chunk) == 64 * MEBI)
            expected.update(chunk)
            queued += len(chunk)
        most = max(most, client.queued_octets)
        joined.step()
        arrived = joined.server.streams[stream_id].take_content()
        digest.update(arrived)
        received += len(arrived)
        joined.server.events.clear()
    assert most <= window + len(chunk)
    assert digest.digest() == expected.digest()
    assert joined.server.streams[stream_id].ended
    assert client.queued_octets == 0
    assert server.open_streams == 1


@each_engine
def test_a_stream_that_is_not_read_stops_at_its_window_and_does_not_stall_another(make: EventFactory) -> None:
    window = 64 << 10
    limits = Limits(stream_window_octets=window, connection_window_octets=MEBI)
    joined = Joined(make, client_limits=limits, acknowledge=False)
    client, server = joined.client.engine, joined.server.engine
    slow, quick = (client.send_request(REQUEST, end_stream=True) for _ in range(2))
    joined.run()
    for stream_id in (slow, quick):
        server.send_head(stream_id, RESPONSE, end_stream=False)
        server.send_data(stream_id, bytes(4 * MEBI), end_stream=True)
    done = 0
    pings = 0
    while done < 4 * MEBI:
        joined.run()
        # The connection's window goes back on receipt, for both; the stream's only for the one that is read.
        arrived = len(joined.client.streams[quick].take_content())
        client.acknowledge(quick, arrived)
        client.acknowledge_connection(arrived)
        done += arrived
        client.ping(pings.to_bytes(8, "big"))
        pings += 1
    joined.run()
    assert len(joined.client.streams[slow].content) == window
    assert server.queued_octets == 4 * MEBI - window
    assert joined.client.streams[quick].ended
    assert [event for event in joined.client.events if type(event).__name__ == "PingAcknowledged"]
    client.acknowledge(slow, window)
    client.acknowledge_connection(window)
    joined.run()
    assert len(joined.client.streams[slow].content) > window


@each_engine
def test_a_thousand_concurrent_streams_arrive_whole(make: EventFactory) -> None:
    joined = Joined(
        make,
        client_limits=Limits(stream_window_octets=20_000, connection_window_octets=100_000),
        server_limits=Limits(stream_window_octets=20_000, connection_window_octets=100_000),
    )
    client, server = joined.client.engine, joined.server.engine
    streams = [client.send_request(REQUEST, end_stream=False) for _ in range(1_000)]
    assert client.open_streams == 1_000
    for stream_id in streams:
        client.send_data(stream_id, b"%d" % stream_id * 100, end_stream=True)
    joined.run()
    for stream_id in streams:
        assert joined.server.streams[stream_id].content == b"%d" % stream_id * 100
        server.send_head(stream_id, RESPONSE, end_stream=False)
        server.send_data(stream_id, b"%d" % stream_id * 7_000, end_stream=True)
    joined.run()
    for stream_id in streams:
        assert joined.client.streams[stream_id].content == b"%d" % stream_id * 7_000
    assert client.open_streams == server.open_streams == client.queued_octets == server.queued_octets == 0

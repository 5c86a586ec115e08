"""What receive windows remember of streams, between two engines."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import WindowUpdated

from proxy.emulator.limits import Limits
from proxy.emulator.windows import CONNECTION, ReceiveWindows


class Pair:
    """A client and the windows of its server, whose streams have a window of 1,000 octets."""

    def __init__(self) -> None:
        self.client, self.server = H2Connection(), H2Connection(H2Configuration(client_side=False))
        self.windows = ReceiveWindows(self.server, Limits(stream_window_octets=1_000, connection_window_octets=65_535))
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.updates()

    def send(self, stream: int, octets: int, *, read_later: bool, end: bool = False) -> None:
        """Send and receive content."""
        self.client.send_data(stream, b"x" * octets, end_stream=end)
        self.server.receive_data(self.client.data_to_send())
        self.windows.received(stream, octets, read_later=read_later)

    def open(self) -> int:
        """Open a stream."""
        stream = self.client.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/")]
        self.client.send_headers(stream, fields)
        return stream

    def updates(self) -> list[tuple[int, int]]:
        """Return the streams and octets of the WINDOW_UPDATE that were sent since the last call."""
        self.server.receive_data(self.client.data_to_send())
        events = self.client.receive_data(self.server.data_to_send())
        return [(event.stream_id or 0, event.delta or 0) for event in events if isinstance(event, WindowUpdated)]


def test_nothing_is_kept_of_a_request_that_was_read() -> None:
    pair = Pair()
    for _ in range(3):
        stream = pair.open()
        pair.send(stream, 10, read_later=True, end=True)
        pair.windows.read(stream)
        pair.server.send_headers(stream, [(":status", "200")], end_stream=True)
        pair.windows.closed(stream)
    assert pair.updates() == []
    assert set(pair.windows._owed) == {CONNECTION}


def test_what_comes_after_the_response_is_given_back_at_once() -> None:
    pair = Pair()
    stream = pair.open()
    pair.send(stream, 10, read_later=True)
    pair.send(stream, 20, read_later=True)
    pair.windows.read(stream)
    assert pair.updates() == []
    pair.server.send_headers(stream, [(":status", "200")], end_stream=True)
    pair.windows.closed(stream)
    assert pair.updates() == [(stream, 30)]
    pair.send(stream, 40, read_later=False)
    assert pair.updates() == [(stream, 40)]
    assert set(pair.windows._owed) == {CONNECTION}

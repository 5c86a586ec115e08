"""The commands of an engine: what they queue, and what `take` makes of it. `Engine` is the contract."""

from __future__ import annotations

from typing import Final, Generic

from proxy.http2 import framing
from proxy.http2.events import Fields, Sent, StreamId
from proxy.http2.heads import check_sendable
from proxy.http2.receiving import Receiver
from proxy.http2.state import Connection, StreamT

__all__ = ["Sender"]

_MAX_STREAM_ID: Final = (1 << 31) - 1


class Sender(Generic[StreamT]):
    """Commands and questions; `H2Engine` adds what it takes to be an Engine."""

    def __init__(self, connection: Connection[StreamT], receiver: Receiver[StreamT], *, client: bool) -> None:
        self._connection = connection
        self._receiver = receiver
        self._client = client

    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        stream = self._connection.streams.get(stream_id)
        if stream is not None:
            self._connection.credit_stream(stream, octets)

    def acknowledge_connection(self, octets: int) -> None:
        self._connection.credit(octets)

    def send_request(self, fields: Fields, end_stream: bool) -> StreamId:
        if not self.free_streams:
            raise RuntimeError("no stream can be opened now: ask free_streams first")
        check_sendable(fields)
        connection = self._connection
        stream = connection.open_stream((connection.highest_outbound_stream_id + 1) | 1)
        stream.to_head = any(field[:2] == (b":method", b"HEAD") for field in fields[:4])
        stream.head_sent()
        connection.write_section(stream.stream_id, fields, end_stream=end_stream)
        if end_stream:
            connection.end_sent(stream)
        return stream.stream_id

    def send_head(self, stream_id: StreamId, fields: Fields, end_stream: bool) -> None:
        stream = self._sending(stream_id)
        if stream is None:
            return
        check_sendable(fields)
        if stream.has_sent_head:
            raise RuntimeError(f"the head of stream {stream_id} was sent before")
        if not fields[0][1].startswith(b"1"):
            stream.head_sent()
            self._receiver.allowance.answered()
        self._connection.write_section(stream_id, fields, end_stream=end_stream)
        if end_stream:
            self._connection.end_sent(stream)

    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        stream = self._sending(stream_id, behind_head=True)
        if stream is not None:
            self._connection.rotation.push(stream, data)
            stream.outgoing.ended = end_stream
            self._connection.rotation.schedule(stream)

    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        stream = self._sending(stream_id, behind_head=True)
        if stream is not None:
            if fields:
                check_sendable(fields)
                stream.outgoing.trailers = fields
            stream.outgoing.ended = True
            self._connection.rotation.schedule(stream)

    def _sending(self, stream_id: StreamId, *, behind_head: bool = False) -> StreamT | None:
        """Return the stream if anything can be queued on it; None if it is gone, finished or being reset."""
        stream = self._connection.streams.get(stream_id)
        if stream is None or not stream.sends:
            return None
        if behind_head and not stream.has_sent_head:
            raise RuntimeError(f"nothing can be sent on stream {stream_id} before its head")
        return stream

    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        stream = self._connection.streams.get(stream_id)
        if stream is None:
            return
        outgoing = stream.outgoing
        if not stream.muted or not after_data:
            outgoing.reset_code = code
        stream.muted = True
        if not outgoing.octets and not outgoing.ended:
            self._connection.reset(stream, code)
        elif not after_data:
            self._connection.rotation.doom(stream)

    def ping(self, payload: bytes) -> None:
        if len(payload) != 8:
            raise ValueError("a PING has eight octets")
        self._receiver.pings += 1
        self._connection.write(framing.ping(payload, ack=False))

    def go_away(self, code: int, debug: bytes = b"") -> None:
        self._receiver.go_away(code, debug)

    def take(self) -> tuple[bytes, list[Sent]]:
        connection = self._connection
        sent: dict[StreamId, int] = {}
        connection.outbound_flow_control_window = connection.rotation.pump(
            connection,
            connection.parts,
            sent,
            window=connection.outbound_flow_control_window,
            max_frame_octets=connection.max_outbound_frame_size,
        )
        data = b"".join(connection.parts)
        connection.parts.clear()
        if sent:
            self._receiver.allowance.content(sum(sent.values()), frames=len(sent))
        return data, [Sent(stream_id, octets) for stream_id, octets in sent.items()]

    # ---- questions

    @property
    def peer_max_concurrent_streams(self) -> int:
        return self._connection.peer_max_streams

    @property
    def open_streams(self) -> int:
        return len(self._connection.streams)

    @property
    def free_streams(self) -> int:
        connection, receiver = self._connection, self._receiver
        if not self._client or receiver.going_away or receiver.peer_going_away:
            return 0
        ids = (_MAX_STREAM_ID - connection.highest_outbound_stream_id + 1) // 2
        return max(0, min(connection.peer_max_streams - len(connection.streams), ids))

    @property
    def queued_octets(self) -> int:
        return self._connection.rotation.octets

    @property
    def wants_to_send(self) -> bool:
        connection = self._connection
        return bool(connection.parts) or connection.rotation.can_send(connection.outbound_flow_control_window)

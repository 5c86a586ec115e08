"""The commands of an engine on h2, and what `take` makes of them. The contract is `proxy.http2.engine`."""

from __future__ import annotations

from contextlib import suppress
from struct import error as StructError  # noqa: N812  (as exceptions are named elsewhere)
from typing import Final

from h2.exceptions import StreamClosedError
from hyperframe.frame import GoAwayFrame, SettingsFrame, WindowUpdateFrame

from proxy.http2.engine import ConnectionHandler, Engine, Limits, Stream, StreamReceiver
from proxy.http2.events import Fields, StreamId
from proxy.http2.policy.fields import check_sendable
from proxy.http2.policy.flood import FloodGuard
from proxy.http2.policy.sending import MAX_TAKEN_OCTETS, RoundRobin, SendQueue, Step
from proxy.http2.policy.stream_history import StreamHistory
from proxy.http2.portable.frames import FrameReader
from proxy.http2.portable.library import Library, ProtocolError

__all__ = ["PortableStream", "SendingEngine"]

_MAX_STREAM_ID: Final = (1 << 31) - 1
_PEER_STREAMS_AT_FIRST: Final = 100


class PortableStream(Stream):
    """A stream on h2: what we expect on it, and what we have still to send."""

    def __init__(self, engine: SendingEngine, stream_id: StreamId) -> None:
        super().__init__()
        self.id = stream_id
        self.engine = engine
        self.queue = SendQueue()
        self.is_live = True  # neither finished in both directions nor reset
        self.receives = True  # the peer's half is open
        self.sends = True  # our half is open; the end may be queued
        self.has_head = False  # the request head or the final response head has come
        self.has_sent_head = False  # … was queued
        self.to_head = False  # the request's method is HEAD
        self.muted = False  # we reset it as soon as the queue allows: nothing more is reported or taken to be sent
        self.interims = 0  # interim heads of the response
        self.missing: int | None = None  # octets of content announced that have not come; None: nothing was announced
        self.withheld_octets = 0  # acknowledged and not yet given back, until they are half of the window

    def send_head(self, fields: Fields, end_stream: bool) -> None:
        if self._takes_more():
            check_sendable(fields)
            if self.has_sent_head:
                raise RuntimeError(f"the head of stream {self.id} was sent before")
            if not fields[0][1].startswith(b"1"):
                self.has_sent_head = True
                self.engine.guard.credit_response()
            self.engine.send_section(self, fields, end_stream=end_stream)
            self.engine.want_flush()

    def send_data(self, data: bytes, end_stream: bool) -> None:
        if self._takes_more(behind_head=True):
            self.queue.content += data
            self.engine.queued_octets += len(data)
            self.queue.ended = end_stream
            self.engine.queue_turn(self)

    def send_trailers(self, fields: Fields) -> None:
        if self._takes_more(behind_head=True):
            if fields:
                check_sendable(fields)
                self.queue.trailers = fields
            self.queue.ended = True
            self.engine.queue_turn(self)

    def _takes_more(self, *, behind_head: bool = False) -> bool:
        if not self.is_live or not self.sends or self.muted or self.queue.ended:
            return False
        if behind_head and not self.has_sent_head:
            raise RuntimeError(f"nothing can be sent on stream {self.id} before its head")
        return True

    def reset(self, code: int, after_data: bool) -> None:
        if not self.is_live:
            return
        if not self.muted or not after_data:
            self.queue.reset_code, self.queue.reset_waits = code, after_data
        self.muted = True
        if self.queue.content or self.queue.ended:
            self.engine.queue_turn(self)
        else:
            self.engine.reset_now(self, code)
            self.engine.want_flush()

    def reset_now(self, code: int) -> None:
        if self.is_live:
            self.muted = True
            self.engine.reset_now(self, code)
            self.engine.want_flush()

    def count_queued_octets(self) -> int:
        return len(self.queue.content)

    def acknowledge(self, octets: int) -> None:
        self.owed_octets -= octets
        if self.engine.give_credit(self, octets):
            self.engine.want_flush()


class SendingEngine(Engine):
    """The sending half of an engine on h2."""

    name = "h2"

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits,
        handler: ConnectionHandler,
        watched_names: frozenset[bytes] = frozenset(),
    ) -> None:
        super().__init__(client=client, limits=limits, handler=handler, watched_names=watched_names)
        self.watched_names = watched_names
        self.client = client
        self.limits = limits
        self.guard = FloodGuard()
        self.streams: dict[StreamId, PortableStream] = {}  # the live ones
        self.unfinished: list[Stream] = []  # those that were live when the connection failed
        self.turns = RoundRobin()
        self.queued_octets = 0
        self.failed = self.going_away = self.peer_going_away = False
        self.history = StreamHistory(client=client)
        self.last_processed: StreamId = 0  # that the handler has heard of; GOAWAY names it
        self.peer_max_streams = _PEER_STREAMS_AT_FIRST
        self._sent: dict[PortableStream, int] = {}
        self._withheld_octets = self.unseen_octets = 0  # of the connection's window; h2 was not shown the latter
        self.reader = FrameReader(expects_preface=not client, limits=limits)
        try:
            self.library = Library(client=client, limits=limits)
        except (ProtocolError, StructError, ValueError) as exc:
            raise ValueError("limits outside the range of HTTP/2 (RFC 9113, 6.5.2)") from exc

    # ---- commands

    def open(self, fields: Fields, end_stream: bool, receiver: StreamReceiver) -> Stream:
        if not self.count_free_streams():
            raise RuntimeError("no stream can be opened now: ask count_free_streams first")
        check_sendable(fields)
        stream = PortableStream(self, self.library.h2.get_next_available_stream_id())
        stream.receiver = receiver
        stream.to_head = any(line[:2] == (b":method", b"HEAD") for line in fields[:4])
        stream.has_sent_head = True
        self.streams[stream.id] = stream
        self.history.opened(stream.id)
        self.send_section(stream, fields, end_stream=end_stream)
        self.want_flush()
        return stream

    def ping(self, payload: bytes) -> None:
        if len(payload) != 8:
            raise ValueError("a PING has eight octets")
        if not self.failed:
            self.library.h2.ping(payload)
            self.want_flush()

    def offer_no_streams(self) -> None:
        if not self.failed:
            self.library.write(SettingsFrame(settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 0}))
            self.want_flush()

    def announce_go_away(self) -> None:
        if not self.failed:
            self.library.write(GoAwayFrame(last_stream_id=_MAX_STREAM_ID))
            self.want_flush()

    def go_away(self, code: int, debug: bytes) -> None:
        if not self.failed:
            self.going_away = True
            self.library.write(GoAwayFrame(last_stream_id=self.last_processed, error_code=code, additional_data=debug))
            self.want_flush()

    def want_flush(self) -> None:
        """Something was queued by a command."""
        if not self.handler.flush_scheduled:
            self.handler.schedule_flush()

    # ---- credit

    def acknowledge_connection(self) -> None:
        octets, self.owed_octets = self.owed_octets, 0
        if self.give_connection_credit(octets):
            self.want_flush()

    def give_credit(self, stream: PortableStream, octets: int) -> bool:
        """Give receive window back to a stream; return whether a WINDOW_UPDATE was queued."""
        if not octets or not stream.is_live or not stream.receives:
            return False
        stream.withheld_octets += octets
        if stream.withheld_octets * 2 < self.limits.stream_window_octets:
            return False
        self.library.h2.increment_flow_control_window(stream.withheld_octets, stream.id)
        stream.withheld_octets = 0
        return True

    def give_connection_credit(self, octets: int, *, unseen: int = 0) -> bool:
        """Give receive window back to the connection, of content that h2 has seen or not; return as `give_credit`."""
        if self.failed or not octets + unseen:
            return False
        self._withheld_octets += octets
        self.unseen_octets += unseen
        if (self._withheld_octets + self.unseen_octets) * 2 < self.limits.connection_window_octets:
            return False
        if self._withheld_octets:
            self.library.h2.increment_flow_control_window(self._withheld_octets)
        if self.unseen_octets:  # h2's count of the window is as it was
            self.library.write(WindowUpdateFrame(0, self.unseen_octets))
        self._withheld_octets = self.unseen_octets = 0
        return True

    # ---- what leaves

    def queue_turn(self, stream: PortableStream) -> None:
        """Something was queued on a stream."""
        if stream.queue:
            self.turns.add(stream.id)
            self.want_flush()

    def take(self) -> bytes:
        octets = frames = 0
        while octets < MAX_TAKEN_OCTETS and (stream_id := self.turns.next()) is not None:
            sent = self._take_turn(self.streams[stream_id])
            octets += sent
            frames += sent > 0
        if octets:
            self.guard.credit_content(octets, frames)
        return self.library.take()

    def _take_turn(self, stream: PortableStream) -> int:
        """Let a stream send one frame; return how much content is in it."""
        h2, queue = self.library.h2, stream.queue
        step, octets = queue.next_step(h2.local_flow_control_window(stream.id), h2.max_outbound_frame_size)
        if step is Step.WAIT:
            self.turns.block(stream.id)
            return 0
        if step is Step.RESET:
            self.reset_now(stream, queue.reset_code or 0)
            return 0
        if step is Step.TRAILERS:
            self.send_section(stream, queue.trailers or [], end_stream=True)
        elif step is Step.END:
            h2.end_stream(stream.id)
        else:
            h2.send_data(stream.id, queue.cut(octets), end_stream=step is Step.LAST_CONTENT)
            self.queued_octets -= octets
            self._sent[stream] = self._sent.get(stream, 0) + octets
        if step in (Step.END, Step.LAST_CONTENT):
            self._end_sent(stream)
        if queue and stream.is_live:
            self.turns.add(stream.id)
        return octets

    def send_section(self, stream: PortableStream, fields: Fields, *, end_stream: bool) -> None:
        """Queue a field section now: sections must leave in the order in which they are compressed."""
        self.library.send_section(stream.id, fields, end_stream=end_stream)
        if end_stream:
            self._end_sent(stream)

    def _end_sent(self, stream: PortableStream) -> None:
        stream.sends = stream.queue.ended = False
        if not stream.receives:
            self.forget(stream)

    def reset_now(self, stream: PortableStream, code: int) -> None:
        """Queue RST_STREAM and drop what is queued on the stream."""
        with suppress(StreamClosedError):  # h2 has done it, where the peer has pushed the stream's window too far
            self.library.h2.reset_stream(stream.id, code)
        self.forget(stream)

    def forget(self, stream: PortableStream) -> None:
        """The stream is over."""
        stream.is_live = False
        self.queued_octets -= len(stream.queue.content)
        stream.queue = SendQueue()
        self.turns.remove(stream.id)
        del self.streams[stream.id]

    def report_sent(self) -> None:
        sent, self._sent = self._sent, {}
        for stream, octets in sent.items():
            if not self.failed:
                self.tell(stream, "on_request_sent" if self.client else "on_response_sent", octets)

    def tell(self, stream: Stream, what: str, *args: object) -> None:
        """Call a method of the stream's receiver, if it has one; an exception goes to the handler."""
        if (receiver := stream.receiver) is not None:
            try:
                getattr(receiver, what)(*args)
            except Exception as exc:  # noqa: BLE001  (the contract: whatever it is, it ends here)
                stream.receiver = stream.receiver or receiver
                self.handler.on_internal_error(stream, exc)

    # ---- questions

    def count_open_streams(self) -> int:
        return len(self.streams)

    def count_free_streams(self) -> int:
        if not self.client or self.going_away or self.peer_going_away or self.failed:
            return 0
        ids_left = (_MAX_STREAM_ID - self.history.highest + 1) // 2
        return max(0, min(self.peer_max_streams - len(self.streams), ids_left))

    def count_queued_octets(self) -> int:
        return self.queued_octets

    def count_frame_octets(self) -> int:
        return self.library.count_output_octets()

    def unfinished_block(self) -> StreamId:
        return self.reader.unfinished_block()

    def wants_to_send(self) -> bool:
        return bool(self.turns) or self.library.has_output()

    def live_streams(self) -> list[Stream]:
        return [*self.unfinished, *self.streams.values()]

    @property
    def peer_max_concurrent_streams(self) -> int:
        return self.peer_max_streams

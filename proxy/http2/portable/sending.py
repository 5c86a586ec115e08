"""The commands of an engine on h2, and what `take` makes of them. The contract is `proxy.http2.engine`."""

from __future__ import annotations

from sys import intern

from h2.events import StreamReset
from h2.windows import WindowManager
from hpack import HeaderTuple, NeverIndexedHeaderTuple
from hyperframe.frame import Frame, GoAwayFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from proxy.http2.engine import UNLIMITED, ConnectionHandler, Engine, Limits, Stream, StreamReceiver
from proxy.http2.events import Fields, StreamId
from proxy.http2.policy.fields import check_sendable, section_octets
from proxy.http2.policy.flood import FloodGuard
from proxy.http2.policy.sending import MAX_TAKEN_OCTETS, RoundRobin, SendQueue, Step
from proxy.http2.policy.stream_history import StreamHistory
from proxy.http2.portable.library import DEFAULT_WINDOW, Connection

__all__ = ["PortableStream", "SendingEngine"]


class PortableStream(Stream):
    """A stream on h2: what we expect on it, and what we have still to send."""

    def __init__(self, engine: SendingEngine, stream_id: StreamId) -> None:
        super().__init__()
        self.id = stream_id
        self.engine = engine
        self.queue = SendQueue()
        self.receives = True  # the peer's half is open
        self.sends = True  # our half is open; the end may be queued
        self.has_head = False  # the request head or the final response head has come
        self.has_sent_head = False  # … was queued
        self.to_head = False  # the request's method is HEAD
        self.muted = False  # we reset it as soon as the queue allows: nothing more is reported or taken to be sent
        self.interims = 0  # interim heads of the response
        self.missing: int | None = None  # octets of content announced that have not come; None: nothing was announced
        self.window = WindowManager(engine.stream_window_octets)  # for what we receive

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
                self.engine.queued_octets += section_octets(fields)
            self.queue.ended = True
            self.engine.queue_turn(self)

    def _takes_more(self, *, behind_head: bool = False) -> bool:
        if not self.sends or self.muted or self.queue.ended:
            return False
        if behind_head and not self.has_sent_head:
            raise RuntimeError(f"nothing can be sent on stream {self.id} before its head")
        return True

    def reset(self, code: int, after_data: bool) -> None:
        if not self.queue.content and not self.queue.ended:
            self.reset_now(code)
        elif not self.muted or not after_data:
            self.muted = True
            self.queue.reset_code, self.queue.reset_waits = code, after_data
            self.engine.queue_turn(self)

    def reset_now(self, code: int) -> None:
        if self.receives or self.sends:
            if self.id <= self.engine.last_taken or not self.engine.client:
                self.engine.write(RstStreamFrame(self.id, code))
            self.engine.forget(self)

    def count_queued_octets(self) -> int:
        return len(self.queue.content) + section_octets(self.queue.trailers or [])

    def acknowledge(self, octets: int) -> None:
        self.owed_octets -= octets
        if self.receives:
            self.engine.give_credit(self.id, self.window, octets)


class SendingEngine(Engine):
    """The sending half of an engine on h2."""

    def __init__(
        self, *, client: bool, limits: Limits, handler: ConnectionHandler, watched_names: frozenset[bytes] = frozenset()
    ) -> None:
        super().__init__(client=client, limits=limits, handler=handler, watched_names=watched_names)
        self.watched_names = watched_names
        self.client = client
        self.incoming, self.outgoing = ("response", "request") if client else ("request", "response")
        self.limits = limits
        self.guard = FloodGuard(limits.stream_window_octets)
        self.history = StreamHistory(client=client)
        self.streams: dict[StreamId, PortableStream] = {}  # the live ones
        self.unfinished: list[PortableStream] = []  # those that were live when the connection failed
        self.turns = RoundRobin()
        self.queued_octets = 0
        self.failed = self.going_away = False
        self.last_processed, self.last_taken = 0, UNLIMITED  # the last stream of our GOAWAY; of the peer's, or none
        self._sent: dict[PortableStream, int] = {}
        self.stream_window_octets = max(limits.stream_window_octets, DEFAULT_WINDOW)  # until it is acknowledged
        self.h2 = Connection(client=client, limits=limits)
        self._output: list[bytes] = []  # of h2 and of `write`, in the order in which it is to leave
        self.window = WindowManager(max(limits.connection_window_octets, DEFAULT_WINDOW))  # of the connection

    def open(self, fields: Fields, end_stream: bool, receiver: StreamReceiver) -> Stream:
        if not self.count_free_streams():
            raise RuntimeError("no stream can be opened now: ask count_free_streams first")
        check_sendable(fields)
        stream = PortableStream(self, self.h2.get_next_available_stream_id())
        stream.receiver, stream.has_sent_head = receiver, True
        stream.to_head = any(line[:2] == (b":method", b"HEAD") for line in fields[:4])
        self.streams[stream.id] = stream
        self.history.opened(stream.id)
        self.send_section(stream, fields, end_stream=end_stream)
        self.want_flush()
        return stream

    def ping(self, payload: bytes) -> None:
        if len(payload) != 8:
            raise ValueError("a PING has eight octets")
        self.write(PingFrame(opaque_data=payload))

    def offer_no_streams(self) -> None:
        self.write(SettingsFrame(settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 0}))

    def announce_go_away(self) -> None:
        self.write(GoAwayFrame(last_stream_id=0x7FFF_FFFF))

    def go_away(self, code: int, debug: bytes) -> None:
        self.going_away = True
        self.write(GoAwayFrame(last_stream_id=self.last_processed, error_code=code, additional_data=debug))

    def write(self, frame: Frame) -> None:
        """Queue a frame that h2 need not know of, or would send nothing more after; not once the connection failed."""
        if not self.failed:
            self._collect()
            self._output.append(frame.serialize())
            self.want_flush()

    def show(self, frame: Frame) -> bool:
        """Let h2 receive a frame, and drop its answer; return whether it has reset a stream. Raises ProtocolError."""
        self._collect()
        try:
            return any(isinstance(event, StreamReset) for event in self.h2.receive_data(frame.serialize()))
        finally:
            self.h2.clear_outbound_data_buffer()

    def _collect(self) -> None:
        if octets := self.h2.data_to_send():
            self._output.append(octets)

    def want_flush(self) -> None:
        """Something was queued."""
        if not self.handler.flush_scheduled:
            self.handler.schedule_flush()

    def acknowledge_connection(self) -> None:
        octets, self.owed_octets = self.owed_octets, 0
        self.give_credit(0, self.window, octets)

    def give_credit(self, stream_id: StreamId, window: WindowManager, octets: int) -> None:
        """Give receive window back to a stream, or to the connection (0), once it is worth a WINDOW_UPDATE."""
        if increment := window.process_bytes(octets):
            self.write(WindowUpdateFrame(stream_id, increment))

    def queue_turn(self, stream: PortableStream) -> None:
        """Something was queued on a stream."""
        if stream.queue:
            self.turns.add(stream.id)
            self.want_flush()

    def take(self) -> bytes:
        h2, taken, frames = self.h2, 0, 0
        while taken < MAX_TAKEN_OCTETS and (stream_id := self.turns.next()) is not None:
            stream = self.streams[stream_id]
            window = min(h2.local_flow_control_window(stream_id), MAX_TAKEN_OCTETS - taken)
            step, octets = stream.queue.next_step(window, h2.max_outbound_frame_size)
            if step is Step.WAIT:
                self.turns.block(stream_id)
                continue
            if step is Step.RESET:
                stream.reset_now(stream.queue.reset_code or 0)
            elif step is Step.TRAILERS:
                trailers, stream.queue.trailers = stream.queue.trailers or [], None
                self.queued_octets -= section_octets(trailers)
                self.send_section(stream, trailers, end_stream=True)
            elif step is Step.END:
                h2.end_stream(stream_id)
            else:
                h2.send_data(stream_id, stream.queue.cut(octets), end_stream=step is Step.LAST_CONTENT)
                taken, frames = taken + octets, frames + 1
                self.queued_octets -= octets
                self._sent[stream] = self._sent.get(stream, 0) + octets
            if step in (Step.END, Step.LAST_CONTENT):
                self._end_sent(stream)
            if stream.queue:
                self.turns.add(stream_id)
        self.guard.credit_content(taken, frames)
        self._collect()
        output, self._output = self._output, []
        return b"".join(output)

    def send_section(self, stream: PortableStream, fields: Fields, *, end_stream: bool) -> None:
        """Queue a field section now: sections must leave in the order in which they are compressed."""
        lines = [(NeverIndexedHeaderTuple if never else HeaderTuple)(name, value) for name, value, never in fields]
        self.h2.send_headers(stream.id, lines, end_stream=end_stream)
        if end_stream:
            self._end_sent(stream)

    def _end_sent(self, stream: PortableStream) -> None:
        stream.sends = stream.queue.ended = False
        if not stream.receives:
            self.forget(stream)

    def forget(self, stream: PortableStream) -> None:
        """The stream is over."""
        if not self.failed:
            self.show(RstStreamFrame(stream.id))
        stream.receives = stream.sends = False
        self.queued_octets -= stream.count_queued_octets()
        stream.queue = SendQueue()
        self.turns.remove(stream.id)
        del self.streams[stream.id]

    def report_sent(self) -> None:
        sent, self._sent = self._sent, {}
        for stream, octets in sent.items():
            if not self.failed:
                self.tell(stream, f"on_{self.outgoing}_sent", octets)

    def tell(self, stream: Stream, what: str, *args: object, to: ConnectionHandler | None = None) -> None:
        """Call a method of the stream's receiver, if it has one, or of `to`; an exception goes to the handler."""
        receiver = stream.receiver
        try:
            if (target := receiver if to is None else to) is not None:
                getattr(target, intern(what))(*args)  # CPython's cache of methods keeps each name it is asked for
        except Exception as exc:  # noqa: BLE001  (the contract: whatever it is, it ends here)
            stream.receiver = stream.receiver or receiver
            self.handler.on_internal_error(stream, exc)

    def count_open_streams(self) -> int:
        return len(self.streams)

    def count_free_streams(self) -> int:
        if not self.client or self.going_away or self.last_taken < UNLIMITED or self.failed:
            return 0
        ids_left = (0x7FFF_FFFF - self.history.highest + 1) // 2
        return max(0, min(self.peer_max_concurrent_streams - len(self.streams), ids_left))

    def count_queued_octets(self) -> int:
        return self.queued_octets

    def count_frame_octets(self) -> int:
        self._collect()
        return sum(map(len, self._output))

    def wants_to_send(self) -> bool:
        return bool(self.turns) or self.count_frame_octets() > 0

    def live_streams(self) -> list[Stream]:
        return [*self.unfinished, *self.streams.values()]

"""What is made of the frames that libnghttp2 has read and acted upon: the events of `Engine.receive`.

It decides as `receiving` does for the other engine (see the table there), except that the library ends the connection,
not just the stream, over content before a response head and (1.70 does, 1.64 does not) over content beyond the stream's
window, as `Engine` allows.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from proxy.http2.libnghttp2 cimport *
from proxy.http2.nghttp2_connection cimport Connection, new_event, put
from proxy.http2.nghttp2_frames cimport *
from proxy.http2.nghttp2_stream cimport Stream
from proxy.http2.section_reader cimport *

from proxy.http2 import refusals
from proxy.http2.events import (
    DataReceived,
    GoAwayReceived,
    HeadReceived,
    InterimReceived,
    PingAcknowledged,
    SettingsReceived,
    StreamReset,
    TrailersReceived,
)
from proxy.http2.framing import ConnectionFault

# Global names of a module are looked up at every use; these are not.
cdef object _HEAD_RECEIVED = HeadReceived
cdef object _INTERIM_RECEIVED = InterimReceived
cdef object _DATA_RECEIVED = DataReceived
cdef object _TRAILERS_RECEIVED = TrailersReceived
cdef object _STREAM_RESET = StreamReset

cdef dict _WORDS = {
    FIELD: refusals.FIELD,
    PSEUDO_FIELD: refusals.PSEUDO_FIELD,
    AUTHORITY: refusals.AUTHORITY,
    USER_INFO: refusals.USER_INFO,
    HOST_DIFFERS: refusals.HOST_DIFFERS,
    CONTENT_LENGTH: refusals.CONTENT_LENGTH,
    SECTION_TOO_LARGE: refusals.SECTION_TOO_LARGE,
    TOO_MANY_STREAMS: refusals.TOO_MANY_STREAMS,
    GOING_AWAY: refusals.GOING_AWAY,
    STREAM_ORDER: refusals.STREAM_ORDER,
    FLOW_CONTROL: refusals.FLOW_CONTROL,
}


@cython.no_gc
cdef class Receiver(Connection):
    """A connection that turns octets into events."""

    def __cinit__(self, *, bint client, limits):
        self._reader = SectionReader(limits.max_field_section_octets)
        self._refused = []

    def receive(self, bytes data not None):
        cdef list reported
        if self.session != NULL and PyBytes_GET_SIZE(data):
            self.earn_by_read()
            try:
                self.take_in(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            except ConnectionFault as exc:
                self.fail(exc.code, exc.reason)
            except Exception as exc:
                self.fail(INTERNAL_ERROR, f"a defect of the engine: {type(exc).__name__}")
        reported = self.events
        self.events = []
        return reported

    def take_refused(self):
        cdef list refused = self._refused
        if refused:
            self._refused = []
        return refused

    cdef int on_data_begins(self, int32_t stream_id, Py_ssize_t length) except -1:
        """DATA of this length is about to be read: is there room for it, and is content in its place?"""
        cdef Stream stream = self.stream(stream_id)
        if stream is None:
            return 0
        if not stream.has_head:
            return self._fault(stream, PROTOCOL_ERROR, STREAM_ORDER)
        if length > nghttp2_session_get_stream_local_window_size(self.session, stream_id):
            if length <= nghttp2_session_get_local_window_size(self.session):
                return self._fault(stream, FLOW_CONTROL_ERROR, FLOW_CONTROL)
        return 0

    cdef int on_section_begins(self, const nghttp2_frame *frame) except? -1:
        """HEADERS have come; their lines follow, unless the return value is not 0."""
        cdef Stream stream = self.stream(frame.hd.stream_id)
        if stream is not None:
            self._reader.begin(RESPONSE if self.client and not stream.has_head else TRAILERS)
        elif self.client or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        elif self.going_away or len(self.streams) >= self.max_streams:
            self._refuse(frame.hd.stream_id, REFUSED_STREAM, GOING_AWAY if self.going_away else TOO_MANY_STREAMS)
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        else:
            self._reader.begin(REQUEST)
        return 0

    cdef int on_line(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1:
        """A line of the section."""
        self._reader.add(name, value, never)
        if self._reader.far_too_great:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "a field section far over SETTINGS_MAX_HEADER_LIST_SIZE")
        return 0

    cdef int on_content(self, int32_t stream_id, const uint8_t *data, Py_ssize_t count) except -1:
        """The content of a DATA frame; `on_frame` follows."""
        if nghttp2_session_get_stream_user_data(self.session, stream_id) == NULL:
            nghttp2_session_consume_connection(self.session, <size_t>count)
        else:
            self._content = PyBytes_FromStringAndSize(<const char *>data, count)
        return 0

    cdef int on_frame(self, const nghttp2_frame *frame) except -1:
        """A frame is complete and was acted upon."""
        cdef int kind = frame.hd.type
        cdef bint end = frame.hd.flags & END_STREAM != 0
        cdef Stream stream
        if kind == DATA:
            self._on_data(frame.hd.stream_id, end)
        elif kind == HEADERS:
            self._on_section(frame.hd.stream_id, end)
        elif kind == WINDOW_UPDATE:
            stream = self.stream(frame.hd.stream_id) if frame.hd.stream_id else None
            if stream is not None:
                self.schedule(stream)
        elif kind == RST_STREAM:
            self._on_reset(frame.hd.stream_id, frame.rst_stream.error_code)
        elif kind == SETTINGS and not frame.hd.flags & ACK:
            self._on_settings(frame)
        elif kind == PING and frame.hd.flags & ACK:
            self.events.append(PingAcknowledged(frame.ping.opaque_data[:8]))
        return 0

    cdef int on_closed(self, int32_t stream_id, uint32_t code) except -1:
        """The library has done with a stream. Where nobody else has reset it, its send window was pushed too far."""
        cdef Stream stream = self.stream(stream_id)
        if stream is None:
            return 0
        self.forget(stream)
        if code == FLOW_CONTROL_ERROR:
            raise ConnectionFault(code, "a stream's window is pushed past 2^31-1")
        return 0

    cdef int on_leaving(self, const uint8_t *header, Py_ssize_t length) except -1:
        """DATA of the stream whose turn it is leaves."""
        cdef char *place = self.outbox.room(FRAME_HEADER_OCTETS + length)
        memcpy(place, header, FRAME_HEADER_OCTETS)
        self.queued -= length
        self.turn.pull(place + FRAME_HEADER_OCTETS, length)
        self.turn = None
        return 0

    cdef int _on_section(self, int32_t stream_id, bint end) except -1:
        cdef Stream stream = self.stream(stream_id)
        cdef SectionReader reader = self._reader
        cdef list fields = reader.end(stream is not None and stream.to_head)
        cdef object event
        if stream is None:
            return self._on_request(stream_id, fields, end)
        if reader.too_great:
            return self._fault(stream, ENHANCE_YOUR_CALM, SECTION_TOO_LARGE)
        if reader.malformed:
            return self._fault(stream, PROTOCOL_ERROR, reader.refusal)
        if stream.has_head:
            if not end or stream.missing > 0:
                return self._fault(stream, PROTOCOL_ERROR, CONTENT_LENGTH if end else STREAM_ORDER)
            event = new_event(_TRAILERS_RECEIVED, 2)
        elif reader.interim:
            if end:
                return self._fault(stream, PROTOCOL_ERROR, STREAM_ORDER)
            event = new_event(_INTERIM_RECEIVED, 2)
        else:
            if end and reader.content_length > 0:
                return self._fault(stream, PROTOCOL_ERROR, CONTENT_LENGTH)
            stream.missing = reader.content_length
            stream.has_head = True
            self.earn_by_head()
            self.earn_by_answer()
            event = new_event(_HEAD_RECEIVED, 3)
            put(event, 2, end)
        put(event, 0, stream.key)
        put(event, 1, fields)
        stream.ended_by_peer = end
        if not stream.muted:
            self.events.append(event)
        return 0

    cdef int _on_request(self, int32_t stream_id, list fields, bint end) except -1:
        cdef Stream stream
        cdef object event
        if self.going_away:
            # GOAWAY was written while the block was coming in, and named a stream before this one.
            return self._refuse(stream_id, REFUSED_STREAM, GOING_AWAY)
        if self._reader.too_great:
            return self._refuse(stream_id, ENHANCE_YOUR_CALM, SECTION_TOO_LARGE)
        if self._reader.malformed:
            return self._refuse(stream_id, PROTOCOL_ERROR, self._reader.refusal)
        if end and self._reader.content_length > 0:
            return self._refuse(stream_id, PROTOCOL_ERROR, CONTENT_LENGTH)
        stream = self.new_stream(stream_id)
        nghttp2_session_set_stream_user_data(self.session, stream_id, <void *>stream)
        stream.missing = self._reader.content_length
        stream.has_head = True
        stream.ended_by_peer = end
        self.last_processed = stream_id
        self.earn_by_head()
        event = new_event(_HEAD_RECEIVED, 3)
        put(event, 0, stream.key)
        put(event, 1, fields)
        put(event, 2, end)
        self.events.append(event)
        return 0

    cdef int _on_data(self, int32_t stream_id, bint end) except -1:
        cdef Stream stream = self.stream(stream_id)
        cdef bytes content = self._content
        cdef Py_ssize_t count = 0
        cdef object event
        self._content = None
        if stream is None:
            return 0
        if content is not None:
            count = PyBytes_GET_SIZE(content)
            self.earn_by_content(count, 1)
        if stream.missing >= 0:
            stream.missing -= count
            if stream.missing < 0 or (end and stream.missing):
                nghttp2_session_consume_connection(self.session, <size_t>count)
                return self._fault(stream, PROTOCOL_ERROR, CONTENT_LENGTH)
        stream.ended_by_peer = end
        if stream.muted:
            nghttp2_session_consume_connection(self.session, <size_t>count)
        elif count or end:
            event = new_event(_DATA_RECEIVED, 3)
            put(event, 0, stream.key)
            put(event, 1, content if count else b"")
            put(event, 2, end)
            self.events.append(event)
        return 0

    cdef int _on_reset(self, int32_t stream_id, uint32_t code) except -1:
        cdef Stream stream = self.stream(stream_id)
        if stream is None:
            return self.spend(1)
        self._report_reset(stream, code, True)
        self.forget(stream)
        return 0 if stream.has_sent_head else self.spend_reset()

    cdef int _on_settings(self, const nghttp2_frame *frame) except -1:
        cdef size_t place
        cdef Stream stream
        for place in range(frame.settings.niv):
            if frame.settings.iv[place].settings_id == NGHTTP2_SETTINGS_HEADER_TABLE_SIZE:
                self.writer.resize(frame.settings.iv[place].value)
        self.peer_max_streams = nghttp2_session_get_remote_settings(
            self.session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        )
        for stream in self.streams.values():
            self.schedule(stream)
        self.events.append(SettingsReceived())
        return 0

    cdef int _fault(self, Stream stream, uint32_t code, int refusal) except -1:
        """Reset a stream on which the peer broke a rule."""
        self._refused.append((stream.key, _WORDS[refusal]))
        nghttp2_submit_rst_stream(self.session, NGHTTP2_FLAG_NONE, stream.id, code)
        if not stream.muted:
            self._report_reset(stream, code, False)
        self.forget(stream)
        return self.spend_reset()

    cdef int _refuse(self, int32_t stream_id, uint32_t code, int refusal) except -1:
        """Reset a stream that nobody has heard of."""
        self._refused.append((stream_id, _WORDS[refusal]))
        nghttp2_submit_rst_stream(self.session, NGHTTP2_FLAG_NONE, stream_id, code)
        return self.spend_reset()

    cdef int _report_reset(self, Stream stream, uint32_t code, bint by_peer) except -1:
        cdef object event = new_event(_STREAM_RESET, 3)
        put(event, 0, stream.key)
        put(event, 1, code)
        put(event, 2, by_peer)
        self.events.append(event)
        return 0

    cdef int handle(self, const uint8_t *frame, Py_ssize_t length) except -1:
        """Do what the contract says about a frame that the library does not get to see."""
        cdef uint8_t kind = frame[3]
        cdef uint32_t stream_id = stream_of(frame)
        if kind == PRIORITY:
            if not stream_id:
                raise ConnectionFault(PROTOCOL_ERROR, "PRIORITY on stream 0")
            if length != 5:
                raise ConnectionFault(FRAME_SIZE_ERROR, "PRIORITY is not five octets")
        elif kind == WINDOW_UPDATE:
            self._on_suspicious_update(frame)
        elif kind == GOAWAY:
            if stream_id:
                raise ConnectionFault(PROTOCOL_ERROR, "GOAWAY on a stream")
            if length < 8:
                raise ConnectionFault(FRAME_SIZE_ERROR, "GOAWAY is shorter than eight octets")
            self.peer_going_away = True
            debug = PyBytes_FromStringAndSize(<const char *>frame + 17, length - 8)
            self.events.append(GoAwayReceived(number_at(frame + 9) & MAX_STREAM_ID, number_at(frame + 13), debug))
        return self.collect()

    cdef int _on_suspicious_update(self, const uint8_t *frame) except -1:
        """An update of a stream's window, by nothing or by very much."""
        cdef Stream stream = self.stream(stream_of(frame))
        cdef uint32_t increment = number_at(frame + FRAME_HEADER_OCTETS) & MAX_STREAM_ID
        if stream is None:
            return self.feed(frame, FRAME_HEADER_OCTETS + 4)
        if not increment:
            return self._fault(stream, PROTOCOL_ERROR, FLOW_CONTROL)
        if <uint32_t>nghttp2_session_get_stream_remote_window_size(self.session, stream.id) > MAX_STREAM_ID - increment:
            return self._fault(stream, FLOW_CONTROL_ERROR, FLOW_CONTROL)
        return self.feed(frame, FRAME_HEADER_OCTETS + 4)

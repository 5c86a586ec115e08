"""What libnghttp2 keeps of one connection, what it is told, and what it is not.

The library has the checks of frames, the decompression, the states of streams, the windows and the settings. Where it
would do something else than the contract (`Engine`) says, it is not asked:

==========================================  ==========================================================================
the library                                 so here
==========================================  ==========================================================================
after GOAWAY, sent or received, closes      GOAWAY is kept from it (`nghttp2_frames`), and written without it
streams, stops reading, forbids requests
ends the connection when a client opens     it is told of no limit: MAX_CONCURRENT_STREAMS is added to the SETTINGS that
one stream too many                         it sends, and streams above it are refused
compresses by a policy of its own           it sends empty sections, which `SectionWriter` fills (it says why)
checks heads loosely, and repairs them      that is switched off: `SectionReader`
keeps a tree of PRIORITY                    PRIORITY is kept from it
ends the connection when a stream's window  such updates are kept from it
is updated by nothing, or (1.70) overflows
ends the connection when its SETTINGS are   the second acknowledgement is kept from it
acknowledged twice
reports content read by read                it gets whole frames only
sends no empty DATA through a closed        an end without content is HEADERS for the library, DATA on the wire
window
skips frames on streams that are gone,      what the peer has ended, and ids that it has passed over, are kept in mind
and takes lower ids for such streams        by `nghttp2_frames`
gives up without a word                     what it has to send is collected after each read: GOAWAY says so
lets SETTINGS overflow a stream's window    the RST_STREAM for which nobody asked says so
==========================================  ==========================================================================

The library calls back from within `nghttp2_session_mem_recv` and `nghttp2_session_mem_send` only. Nothing is raised
into it: a callback keeps the exception and returns an error; whoever called the library raises it again.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from proxy.http2.libnghttp2 cimport *
from proxy.http2.nghttp2_frames cimport *
from proxy.http2.nghttp2_session cimport python_memory, set_young_limits
from proxy.http2.nghttp2_stream cimport Stream
from proxy.http2.outbox cimport Outbox, put_frame_header
from proxy.http2.section_writer cimport SectionWriter

from proxy.http2 import flood
from proxy.http2.events import ConnectionFailed
from proxy.http2.framing import ConnectionFault

cdef uint64_t _RESETS_A_SECOND = flood.MOST_RESETS
cdef uint64_t _GLITCHES_A_SECOND = flood.MOST_CHATTER

cdef enum:
    _PREFACE_OCTETS = 24
    _DEFAULT_WINDOW = 65535
    _PEER_STREAMS_AT_FIRST = 100
    _MOST_SETTINGS = 32  # entries of one SETTINGS frame: each may touch every stream
    _SPARE_CONTINUATIONS = 16
    _GONE_TURNS = 64
    _SECONDS = 100  # the library counts by the clock: its limits are a second line, far behind `flood`

_OUT_OF_RANGE = "limits outside the range of HTTP/2 (RFC 9113, 6.5.2)"
_REASONS = {
    FLOW_CONTROL_ERROR: "more content than the connection's window",
    FRAME_SIZE_ERROR: "a frame of a length that it must not have",
    COMPRESSION_ERROR: "a field block that cannot be decoded",
    ENHANCE_YOUR_CALM: "too many frames to no effect",
}
"""What the library means where it gives no text."""


@cython.no_gc
cdef class Connection(Frames):
    """A session of the library, and what it does not keep.

    `session` is NULL once the connection has failed. `streams` by id; `turns`, the streams that have content to send, in
    order; `turn` and `turn_octets`, the stream of the frame that the library is to send now, and its length; `section`,
    what the HEADERS stand for that it is to send now.
    """

    def __cinit__(self, *, bint client, limits):
        self.client = client
        self.events = []
        self.streams = {}
        self.outbox = Outbox()
        self.writer = SectionWriter()
        self.turns = []
        self.peer_max_streams = _PEER_STREAMS_AT_FIRST
        self.preface_left = 0 if client else _PREFACE_OCTETS
        try:
            self._open(limits)
        except OverflowError as exc:
            raise ValueError(_OUT_OF_RANGE) from exc

    def __dealloc__(self):
        nghttp2_session_del(self.session)

    cdef int _open(self, object limits) except -1:
        """Make the session; queue preface, SETTINGS and the connection's window."""
        cdef nghttp2_option *option = NULL
        cdef nghttp2_settings_entry[4] entries
        cdef size_t count = 3
        cdef int32_t connection_window = limits.connection_window_octets
        cdef uint32_t max_streams = limits.max_concurrent_streams
        cdef size_t max_section = limits.max_field_section_octets
        cdef int rv
        self.max_frame = limits.max_frame_octets
        self.max_continuations = _SPARE_CONTINUATIONS + <Py_ssize_t>max_section // max(self.max_frame, 1)
        self.max_streams = max_streams
        entries[0].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        entries[0].value = limits.stream_window_octets
        entries[1].settings_id = NGHTTP2_SETTINGS_MAX_FRAME_SIZE
        entries[1].value = limits.max_frame_octets
        entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        entries[2].value = limits.max_field_section_octets
        if self.client:
            entries[3].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
            entries[3].value = 0
            count = 4
        if nghttp2_option_new(&option) != 0:
            raise MemoryError
        nghttp2_option_set_no_auto_window_update(option, 1)
        nghttp2_option_set_no_http_messaging(option, 1)
        nghttp2_option_set_no_closed_streams(option, 1)
        nghttp2_option_set_peer_max_concurrent_streams(option, _PEER_STREAMS_AT_FIRST)
        nghttp2_option_set_max_deflate_dynamic_table_size(option, 0)
        nghttp2_option_set_max_outbound_ack(option, MOST_UNSENT_ACKS)
        nghttp2_option_set_max_settings(option, _MOST_SETTINGS)
        set_young_limits(option, <size_t>self.max_continuations, _RESETS_A_SECOND, _GLITCHES_A_SECOND, _SECONDS)
        if self.client:
            rv = nghttp2_session_client_new3(&self.session, _CALLBACKS, <void *>self, option, &python_memory)
        else:
            rv = nghttp2_session_server_new3(&self.session, _CALLBACKS, <void *>self, option, &python_memory)
        nghttp2_option_del(option)
        if rv != 0:
            raise MemoryError
        if nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, entries, count) != 0:
            raise ValueError(_OUT_OF_RANGE)
        if connection_window > _DEFAULT_WINDOW:
            if nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, 0, connection_window) != 0:
                raise ValueError(_OUT_OF_RANGE)
        return self.collect()

    # ---- octets, from and for the library

    cdef int feed(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Give octets to the library, and collect what it has to say."""
        cdef ssize_t rv
        if not count:
            return 0
        rv = nghttp2_session_mem_recv(self.session, data, <size_t>count)
        if rv < 0:
            self._raise_again()
            if rv == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
                raise ConnectionFault(PROTOCOL_ERROR, "the client preface is missing: this is not HTTP/2")
            if rv == NGHTTP2_ERR_NOMEM:
                raise MemoryError
            raise ConnectionFault(ENHANCE_YOUR_CALM, nghttp2_strerror(<int>rv).decode())
        return self.collect()

    cdef int _raise_again(self) except -1:
        """Raise what a callback has kept."""
        cdef object raised = self._raised
        if raised is not None:
            self._raised = None
            raise raised
        return 0

    cdef int collect(self) except -1:
        """Put what the library has queued, which is all but content, into the outbox."""
        cdef const uint8_t *frame
        cdef ssize_t count
        while True:
            count = nghttp2_session_mem_send(self.session, &frame)
            if count <= 0:
                break
            if frame[3] == HEADERS:
                self._write_section(frame)
            elif frame[3] == SETTINGS and not frame[4] & ACK:
                self._write_settings(frame, count)
            elif frame[3] == GOAWAY:
                code = number_at(frame + 13)
                reason = frame[17:count].decode() or _REASONS.get(code, "a rule of HTTP/2 was broken")
                raise ConnectionFault(code, reason)
            else:
                self.outbox.write(frame, count)
        if count < 0:
            self._raise_again()
            raise MemoryError
        return 0

    # ---- streams

    cdef Stream stream(self, int32_t stream_id):
        """Return the stream, or None if it is over, or was never reported."""
        cdef void *stream = nghttp2_session_get_stream_user_data(self.session, stream_id)
        return None if stream == NULL else <Stream>stream

    cdef Stream new_stream(self, int32_t stream_id):
        """Add a stream."""
        cdef Stream stream = Stream.__new__(Stream)
        stream.id = stream_id
        stream.key = stream_id
        self.streams[stream.key] = stream
        return stream

    cdef int forget(self, Stream stream) except -1:
        """The stream is over: let go of it, and have the library know it no more."""
        nghttp2_session_set_stream_user_data(self.session, stream.id, NULL)
        self.queued -= stream.octets
        stream.drop()
        stream.gone = True
        del self.streams[stream.key]
        return 0

    cdef int schedule(self, Stream stream) except -1:
        """Give the stream a turn if it has content to send."""
        if stream.octets and not stream.scheduled:
            stream.scheduled = True
            self.turns.append(stream)
            if len(self.turns) > 2 * len(self.streams) + _GONE_TURNS:
                # With the connection's window closed nobody takes turns, and those of streams that are over pile up.
                self.turns = [other for other in self.turns if not (<Stream>other).gone]
        return 0

    # ---- what the library leaves to us

    cdef int fail(self, uint32_t code, str reason) except -1:
        """End the connection: GOAWAY, and ConnectionFailed as the last event."""
        cdef Stream stream
        if self.session == NULL:
            return 0
        self.write_go_away(code, reason.encode())
        nghttp2_session_del(self.session)
        self.session = NULL
        for stream in self.streams.values():
            stream.drop()
            stream.gone = True
        self.streams.clear()
        self.turns.clear()
        self.queued = 0
        self.release()
        self.events.append(ConnectionFailed(code, reason))
        return 0

    cdef int write_go_away(self, uint32_t code, bytes debug) except -1:
        """Write GOAWAY with the highest stream that was reported."""
        self.going_away = True
        self.outbox.write_frame_header(8 + PyBytes_GET_SIZE(debug), GOAWAY, 0, 0)
        self.outbox.write_long(<uint32_t>self.last_processed)
        self.outbox.write_long(code)
        return self.outbox.write(PyBytes_AS_STRING(debug), PyBytes_GET_SIZE(debug))

    cdef int _write_settings(self, const uint8_t *frame, Py_ssize_t count) except -1:
        """Write the library's SETTINGS, and for a server MAX_CONCURRENT_STREAMS."""
        cdef bint limited = not self.client
        self.outbox.write_frame_header(count - FRAME_HEADER_OCTETS + (6 if limited else 0), SETTINGS, 0, 0)
        self.outbox.write(frame + FRAME_HEADER_OCTETS, count - FRAME_HEADER_OCTETS)
        if limited:
            self.outbox.write(b"\0\3", 2)
            self.outbox.write_long(<uint32_t>self.max_streams)
        return 0

    cdef int _write_section(self, const uint8_t *frame) except -1:
        """Write the section that the library's HEADERS stand for; without one, they stand for the end of content."""
        cdef int32_t stream_id = stream_of(frame)
        cdef int flags = frame[4] & END_STREAM
        cdef Py_ssize_t start = self.outbox.size, length, most
        cdef bytes block
        if self.section is None:
            return self.outbox.write_frame_header(0, DATA, flags, stream_id)
        self.outbox.write_frame_header(0, HEADERS, flags | END_HEADERS, stream_id)
        self.writer.write(self.section, self.outbox)
        self.section = None
        length = self.outbox.size - start - FRAME_HEADER_OCTETS
        most = nghttp2_session_get_remote_settings(self.session, NGHTTP2_SETTINGS_MAX_FRAME_SIZE)
        if length <= most:
            put_frame_header(self.outbox.at(start), length, HEADERS, flags | END_HEADERS, stream_id)
            return 0
        block = PyBytes_FromStringAndSize(self.outbox.at(start + FRAME_HEADER_OCTETS), length)
        self.outbox.size = start
        for start in range(0, length, most):
            self.outbox.write_frame_header(
                min(most, length - start),
                CONTINUATION if start else HEADERS,
                (0 if start else flags) | (END_HEADERS if start + most >= length else 0),
                stream_id,
            )
            self.outbox.write(PyBytes_AS_STRING(block) + start, min(most, length - start))
        return 0


    # ---- what the library reports

    cdef int on_data_begins(self, int32_t stream_id, Py_ssize_t length) except -1:
        """DATA with a payload of this length comes next."""
        raise NotImplementedError

    cdef int on_section_begins(self, const nghttp2_frame *frame) except? -1:
        """HEADERS have come, their lines come next. If the result is not 0, they are not reported."""
        raise NotImplementedError

    cdef int on_line(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1:
        """A line of the section."""
        raise NotImplementedError

    cdef int on_content(self, int32_t stream_id, const uint8_t *data, Py_ssize_t count) except -1:
        """All content of the DATA, of which there is some."""
        raise NotImplementedError

    cdef int on_frame(self, const nghttp2_frame *frame) except -1:
        """The frame is complete, and the library has acted upon it."""
        raise NotImplementedError

    cdef int on_closed(self, int32_t stream_id, uint32_t code) except -1:
        """The library has done with the stream."""
        raise NotImplementedError

    cdef int on_leaving(self, const uint8_t *header, Py_ssize_t length) except -1:
        """The frame of content that it was to send goes out now."""
        raise NotImplementedError


# ---- callbacks


cdef int _keep(Connection self, object raised) noexcept:
    self._raised = raised
    return NGHTTP2_ERR_CALLBACK_FAILURE


cdef int _begin_frame(nghttp2_session *session, const nghttp2_frame_hd *header, void *connection) noexcept:
    if header.type != DATA:
        return 0
    try:
        return (<Connection>connection).on_data_begins(header.stream_id, <Py_ssize_t>header.length)
    except Exception as exc:
        return _keep(<Connection>connection, exc)


cdef int _begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *connection) noexcept:
    try:
        return (<Connection>connection).on_section_begins(frame)
    except Exception as exc:
        return _keep(<Connection>connection, exc)


cdef int _header(
    nghttp2_session *session,
    const nghttp2_frame *frame,
    nghttp2_rcbuf *name,
    nghttp2_rcbuf *value,
    uint8_t flags,
    void *connection,
) noexcept:
    try:
        return (<Connection>connection).on_line(name, value, flags & NGHTTP2_NV_FLAG_NO_INDEX != 0)
    except Exception as exc:
        return _keep(<Connection>connection, exc)


cdef int _data_chunk(
    nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t count, void *connection
) noexcept:
    try:
        return (<Connection>connection).on_content(stream_id, data, <Py_ssize_t>count)
    except Exception as exc:
        return _keep(<Connection>connection, exc)


cdef int _frame(nghttp2_session *session, const nghttp2_frame *frame, void *connection) noexcept:
    try:
        return (<Connection>connection).on_frame(frame)
    except Exception as exc:
        return _keep(<Connection>connection, exc)


cdef int _stream_close(nghttp2_session *session, int32_t stream_id, uint32_t code, void *connection) noexcept:
    try:
        return (<Connection>connection).on_closed(stream_id, code)
    except Exception as exc:
        return _keep(<Connection>connection, exc)


cdef int _send_data(
    nghttp2_session *session,
    nghttp2_frame *frame,
    const uint8_t *header,
    size_t length,
    nghttp2_data_source *source,
    void *connection,
) noexcept:
    try:
        return (<Connection>connection).on_leaving(header, <Py_ssize_t>length)
    except Exception as exc:
        return _keep(<Connection>connection, exc)


cdef ssize_t _read_length(
    nghttp2_session *session,
    uint8_t kind,
    int32_t stream_id,
    int32_t connection_window,
    int32_t stream_window,
    uint32_t max_frame,
    void *connection,
) noexcept:
    return (<Connection>connection).turn_octets


cdef nghttp2_session_callbacks *_CALLBACKS = NULL
if nghttp2_session_callbacks_new(&_CALLBACKS) != 0:
    raise MemoryError
nghttp2_session_callbacks_set_on_begin_frame_callback(_CALLBACKS, _begin_frame)
nghttp2_session_callbacks_set_on_begin_headers_callback(_CALLBACKS, _begin_headers)
nghttp2_session_callbacks_set_on_header_callback2(_CALLBACKS, _header)
nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_CALLBACKS, _data_chunk)
nghttp2_session_callbacks_set_on_frame_recv_callback(_CALLBACKS, _frame)
nghttp2_session_callbacks_set_on_stream_close_callback(_CALLBACKS, _stream_close)
nghttp2_session_callbacks_set_send_data_callback(_CALLBACKS, _send_data)
nghttp2_session_callbacks_set_data_source_read_length_callback(_CALLBACKS, _read_length)

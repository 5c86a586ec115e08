"""A session of libnghttp2: what it is made with, the octets that go in and out, and the sections it does not write.

The library sends HEADERS without fields, in order, and the section that each stands for is written in their place.
"""

cdef extern from *:
    """
    static inline void raise_pending(void) {}
    """
    void raise_pending() except *  # raises the exception that a callback has left, if it has

cdef enum:
    _DEFAULT_WINDOW = 65535  # of a stream, before SETTINGS come, and of the connection
    _NO_RFC7540_PRIORITIES = 9  # headers of libnghttp2 before 1.48 do not name it
    _MOST_SETTINGS = 32  # entries of one SETTINGS frame: each may touch every stream
    _SECONDS = 100  # the library counts by the clock: its limits are a second line, far behind `flood`

_REASONS = {
    FLOW_CONTROL_ERROR: "more content than the connection's window",
    FRAME_SIZE_ERROR: "a frame of a length that it must not have",
    COMPRESSION_ERROR: "a field block that cannot be decoded",
    ENHANCE_YOUR_CALM: "too many frames to no effect",
}
"""What the library means where it gives no text."""


@cython.final
@cython.no_gc
cdef class Session:
    """`handle` is the library's session, NULL once it is closed; `outbox`, what is to leave; `writer`, the compressor.

    `calling_back`: the library must not be asked for what it has to send. `content_octets`: the length of the DATA
    frame that it is to send. `max_streams`: what SETTINGS offer. `max_interims`: interim heads taken of a response.
    `last_taken`: the last stream of a client that its server takes, as GOAWAY says; it ignores those above.
    """

    cdef nghttp2_session *handle
    cdef bint client
    cdef bint calling_back
    cdef Outbox outbox
    cdef SectionWriter writer
    cdef uint32_t max_streams
    cdef Py_ssize_t max_interims
    cdef int32_t last_taken
    cdef Py_ssize_t content_octets

    cdef list _section
    cdef dict _deferred

    def __cinit__(self, *, bint client):
        self.client = client
        self.last_taken = MAX_STREAM_ID
        self.outbox = Outbox()
        self.writer = SectionWriter()
        self._deferred = {}

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        """End it; what is in the outbox can still be sent."""
        nghttp2_session_del(self.handle)
        self.handle = NULL

    cdef int open(self, object limits, nghttp2_session_callbacks *callbacks, void *owner) except -1:
        """Make the session; queue preface, SETTINGS and the connection's window. Callbacks are given `owner`."""
        cdef nghttp2_option *option = NULL
        cdef nghttp2_settings_entry[5] entries
        cdef size_t count = 4
        cdef int32_t connection_window = limits.connection_window_octets
        cdef int rv
        self.max_streams = limits.max_concurrent_streams
        self.max_interims = limits.max_interim_heads
        entries[0].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        entries[0].value = limits.stream_window_octets
        entries[1].settings_id = NGHTTP2_SETTINGS_MAX_FRAME_SIZE
        entries[1].value = limits.max_frame_octets
        entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        entries[2].value = limits.max_field_section_octets
        # Priorities of either kind are ignored (RFC 9218, 2.1): the library keeps no tree of streams.
        entries[3].settings_id = _NO_RFC7540_PRIORITIES
        entries[3].value = 1
        if self.client:
            entries[4].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
            entries[4].value = 0
            count = 5
        if nghttp2_option_new(&option) != 0:
            raise MemoryError
        nghttp2_option_set_no_auto_window_update(option, 1)
        nghttp2_option_set_no_http_messaging(option, 1)
        nghttp2_option_set_no_closed_streams(option, 1)
        nghttp2_option_set_max_deflate_dynamic_table_size(option, 0)
        nghttp2_option_set_max_outbound_ack(option, MOST_UNSENT_ACKS)
        nghttp2_option_set_max_settings(option, _MOST_SETTINGS)
        set_optional_limits(
            option, limits.max_continuations, flood.MOST_RESETS, flood.MOST_CONTROL_FRAMES, _SECONDS
        )
        if self.client:
            rv = nghttp2_session_client_new3(&self.handle, callbacks, owner, option, &python_memory)
        else:
            rv = nghttp2_session_server_new3(&self.handle, callbacks, owner, option, &python_memory)
        nghttp2_option_del(option)
        if rv != 0:
            raise MemoryError
        if nghttp2_submit_settings(self.handle, NGHTTP2_FLAG_NONE, entries, count) != 0:
            raise MemoryError
        if connection_window > _DEFAULT_WINDOW:
            if nghttp2_session_set_local_window_size(self.handle, NGHTTP2_FLAG_NONE, 0, connection_window) != 0:
                raise MemoryError
        return self.collect()

    cdef int feed(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Give octets to the library, and collect what it has to say."""
        cdef ssize_t rv
        self.calling_back = True
        rv = nghttp2_session_mem_recv(self.handle, data, <size_t>count)
        self.calling_back = False
        if rv < 0:
            raise_pending()
            if rv == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
                raise ConnectionFault(PROTOCOL_ERROR, "the client preface is missing: this is not HTTP/2")
            if rv == NGHTTP2_ERR_NOMEM:
                raise MemoryError
            raise ConnectionFault(ENHANCE_YOUR_CALM, nghttp2_strerror(<int>rv).decode())
        return self.collect()

    cdef int collect(self) except -1:
        """Put what the library has queued, which is all but content, into the outbox."""
        cdef const uint8_t *frame
        cdef ssize_t count
        while True:
            count = nghttp2_session_mem_send(self.handle, &frame)
            if count <= 0:
                break
            if frame[3] == HEADERS:
                self._write_section(frame)
            elif frame[3] == SETTINGS and not frame[4] & ACK and not self.client:
                self._write_settings(frame, count)
            elif frame[3] == GOAWAY:
                code = number_at(frame + 13)
                reason = frame[17:count].decode() or _REASONS.get(code, "a rule of HTTP/2 was broken")
                raise ConnectionFault(code, reason)
            elif frame[3] != RST_STREAM or stream_of(frame) <= self.last_taken:
                self.outbox.write(frame, count)
        if count < 0:
            raise_pending()
            raise MemoryError
        if self._deferred:
            self._deferred.clear()
        return 0

    cdef int submit_section(self, int32_t stream_id, bint opens, list fields, bint end, void *stream) except -1:
        """Have the library send HEADERS, which stand for this section, or without one for the end of the content.

        With `opens` the stream is new, and its id the next one. `collect` has to follow.
        """
        if self.calling_back:
            self._deferred.setdefault(stream_id, []).append(fields)
        else:
            self._section = fields
        if nghttp2_submit_headers(
            self.handle, END_STREAM if end else 0, -1 if opens else stream_id, NULL, NULL, 0, stream
        ) < 0:
            raise MemoryError
        return 0

    cdef bint submit_content(self, int32_t stream_id, Py_ssize_t octets, bint ends):
        """Have the library send a DATA frame of this length; return whether it takes it. `collect` has to follow.

        The frame's content is written by the callback for it, which `receiving` has.
        """
        cdef nghttp2_data_provider provider
        self.content_octets = octets
        provider.source.ptr = <void *>self
        provider.read_callback = _promise_content
        return nghttp2_submit_data(self.handle, END_STREAM if ends else 0, stream_id, &provider) == 0

    cdef int write_go_away(self, int32_t last_processed, uint32_t code, bytes debug) except -1:
        """Write GOAWAY; the library is not told."""
        self.outbox.write_frame_header(8 + PyBytes_GET_SIZE(debug), GOAWAY, 0, 0)
        self.outbox.write_long(<uint32_t>last_processed)
        self.outbox.write_long(code)
        return self.outbox.write(PyBytes_AS_STRING(debug), PyBytes_GET_SIZE(debug))

    cdef int _write_settings(self, const uint8_t *frame, Py_ssize_t count) except -1:
        """Write a server's SETTINGS: the library's, and MAX_CONCURRENT_STREAMS."""
        self.outbox.write_frame_header(count - FRAME_HEADER_OCTETS + 6, SETTINGS, 0, 0)
        self.outbox.write(frame + FRAME_HEADER_OCTETS, count - FRAME_HEADER_OCTETS)
        self.outbox.write(b"\0\3", 2)
        return self.outbox.write_long(self.max_streams)

    cdef int _write_section(self, const uint8_t *frame) except -1:
        """Write the section that the library's HEADERS stand for; without one, they stand for the end of content."""
        cdef int32_t stream_id = stream_of(frame)
        cdef int flags = frame[4] & END_STREAM
        cdef Py_ssize_t start = self.outbox.size, length, most
        cdef bytes block
        cdef list fields = self._section
        self._section = None
        if self._deferred:
            fields = self._deferred[stream_id].pop(0)
        if fields is None:
            return self.outbox.write_frame_header(0, DATA, flags, stream_id)
        self.outbox.write_frame_header(0, HEADERS, flags | END_HEADERS, stream_id)
        self.writer.write(fields, self.outbox)
        length = self.outbox.size - start - FRAME_HEADER_OCTETS
        most = nghttp2_session_get_remote_settings(self.handle, NGHTTP2_SETTINGS_MAX_FRAME_SIZE)
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


cdef ssize_t _promise_content(
    nghttp2_session *handle,
    int32_t stream_id,
    uint8_t *place,
    size_t most,
    uint32_t *flags,
    nghttp2_data_source *source,
    void *owner,
) noexcept:
    """Return how much content the frame gets."""
    cdef Py_ssize_t octets = (<Session>source.ptr).content_octets
    flags[0] = NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_COPY
    return octets if 0 < octets <= <Py_ssize_t>most else FAILED

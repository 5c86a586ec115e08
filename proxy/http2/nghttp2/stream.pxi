"""One stream of `Nghttp2Engine`: its commands, what the library does not know about it, and what waits to be sent."""

cdef Py_ssize_t _JOINED_OCTETS = sending.JOINED_OCTETS


@cython.final
cdef class Nghttp2Stream(Stream):
    """A stream; `engine` is None once it is finished in both directions. `previous` and `following`: live ones of it;
    `turn_before` and `turn_after`: those that have content to send.

    What has come: `has_head` (request head, or final response head); `to_head`, our request was HEAD; `ended_by_peer`;
    `muted`, nothing more is reported, because we have reset it or are about to; `missing` octets of content that were
    announced, -1 where nothing was; `interims`, interim heads of the response.

    What is to go: `has_sent_head`; `ended`, the end is queued behind the content, as `trailers` of `trailer_octets` if
    there are any; `end_sent`; `scheduled`, it has a turn; `reset_code` to send behind all that, -1 for none; `octets`
    of content that are queued, and `leaving`, those that were taken and not yet reported.
    """

    cdef Nghttp2Engine engine
    cdef Nghttp2Stream previous
    cdef Nghttp2Stream following
    cdef Nghttp2Stream turn_before
    cdef Nghttp2Stream turn_after

    cdef bint has_head
    cdef bint to_head
    cdef bint ended_by_peer
    cdef bint muted
    cdef int64_t missing
    cdef Py_ssize_t interims

    cdef bint has_sent_head
    cdef bint ended
    cdef bint end_sent
    cdef bint scheduled
    cdef list trailers
    cdef Py_ssize_t trailer_octets
    cdef int64_t reset_code
    cdef Py_ssize_t octets
    cdef Py_ssize_t leaving

    cdef bytes _chunk
    cdef Py_ssize_t _offset
    cdef list _more
    cdef Py_ssize_t _next

    def __cinit__(self):
        self.missing = self.reset_code = -1

    # ---- commands

    cpdef send_head(self, list fields, bint end_stream):
        cdef Nghttp2Engine engine = self.engine
        if not self._can_send(False):
            return
        engine.session.writer.check(fields)
        if self.has_sent_head:
            raise RuntimeError(f"the head of stream {self.id} was sent before")
        if not (<bytes>(<tuple>fields[0])[1]).startswith(b"1"):
            self.has_sent_head = True
            engine.guard.credit_response()
        self.end_sent = end_stream
        engine.session.submit_section(<int32_t>self.id, False, fields, end_stream, <void *>self)
        engine.collect()
        engine.wake()

    cpdef send_data(self, bytes data, bint end_stream):
        cdef Nghttp2Engine engine = self.engine
        if not self._can_send(True):
            return
        if PyBytes_GET_SIZE(data):
            if self._chunk is None:
                self._chunk = data
            else:
                self._queue_behind(data)
            self.octets += PyBytes_GET_SIZE(data)
            engine.queued += PyBytes_GET_SIZE(data)
            self.schedule()
        if end_stream:
            self.ended = True
            if not self.octets:
                self.finish()
        engine.wake()

    cpdef send_trailers(self, list fields):
        cdef Nghttp2Engine engine = self.engine
        if not self._can_send(True):
            return
        if PyList_GET_SIZE(fields):
            engine.session.writer.check(fields)
            self.trailers = fields[:]
            self.trailer_octets = section_octets(fields)
            engine.queued += self.trailer_octets
        self.ended = True
        if not self.octets:
            self.finish()
        engine.wake()

    cpdef reset(self, long code, bint after_data):
        cdef Nghttp2Engine engine = self.engine
        if engine is None:
            return
        if not self.muted or not after_data:
            self.reset_code = code
        self.muted = True
        if not self.octets and not engine.session.calling_back:
            self.send_reset()
        elif not after_data or not self.octets:
            # Sections that are queued while the library calls back have not been written yet.
            engine.resets_to_send.append(self)
        engine.wake()

    cpdef reset_now(self, long code):
        cdef Nghttp2Engine engine = self.engine
        if engine is None:
            return
        self.reset_code = code
        self.muted = True
        if engine.session.calling_back:
            self._drop_queue()
            engine.resets_to_send.append(self)
        else:
            self.send_reset()
        engine.wake()

    cpdef Py_ssize_t count_queued_octets(self):
        return self.octets + self.trailer_octets

    cpdef acknowledge(self, Py_ssize_t octets):
        cdef Nghttp2Engine engine = self.engine
        self.owed_octets -= octets
        if engine is not None and not self.ended_by_peer and octets > 0:
            nghttp2_session_consume_stream(engine.session.handle, <int32_t>self.id, <size_t>octets)
            engine.collect()
            if engine.session.outbox.size:
                engine.wake()

    cdef bint _can_send(self, bint behind_head) except -1:
        if self.engine is None or self.muted or self.ended or self.end_sent:
            return False
        if behind_head and not self.has_sent_head:
            raise RuntimeError(f"nothing can be sent on stream {self.id} before its head")
        return True

    # ---- its end

    cdef int finish(self) except -1:
        """Send the end, alone or as trailers."""
        cdef Nghttp2Engine engine = self.engine
        cdef list trailers = self.trailers
        if engine.session.calling_back:
            # The library would send it before the head of a request that is queued, and so not at all.
            engine.ends_to_send.append(self)
            return 0
        engine.queued -= self.trailer_octets
        self.trailers = None
        self.trailer_octets = 0
        self.ended = False
        self.end_sent = True
        engine.session.submit_section(<int32_t>self.id, False, trailers, True, <void *>self)
        return engine.collect()

    cdef int send_reset(self) except -1:
        """Send RST_STREAM with `reset_code`: the stream is over."""
        cdef Nghttp2Engine engine = self.engine
        nghttp2_submit_rst_stream(engine.session.handle, NGHTTP2_FLAG_NONE, <int32_t>self.id, <uint32_t>self.reset_code)
        self.forget()
        return engine.collect()

    cdef int forget(self) except -1:
        """The stream is over: leave, and have the library know it no more."""
        nghttp2_session_set_stream_user_data(self.engine.session.handle, <int32_t>self.id, NULL)
        return self.leave()

    cdef int leave(self) except -1:
        """The stream is over: forget all that is queued, and leave the live streams of the engine."""
        cdef Nghttp2Engine engine = self.engine
        self._drop_queue()
        self.reset_code = -1  # `Nghttp2Engine._send_frame` looks at it when the library has closed the stream
        if self.previous is None:
            engine.first = self.following
        else:
            self.previous.following = self.following
        if self.following is None:
            engine.last = self.previous
        else:
            self.following.previous = self.previous
        self.previous = self.following = None
        if engine.found is self:
            engine.found = None
        engine.open_streams -= 1
        self.engine = None
        return 0

    # ---- its turn to send content

    cdef int schedule(self) except -1:
        """Have a turn if there is content to send."""
        cdef Nghttp2Engine engine = self.engine
        if self.octets and not self.scheduled:
            self.scheduled = True
            self.turn_before = engine.last_turn
            if engine.last_turn is None:
                engine.first_turn = self
            else:
                engine.last_turn.turn_after = self
            engine.last_turn = self
        return 0

    cdef int unschedule(self) except -1:
        """Have no turn any more."""
        cdef Nghttp2Engine engine = self.engine
        if self.scheduled:
            self.scheduled = False
            if self.turn_before is None:
                engine.first_turn = self.turn_after
            else:
                self.turn_before.turn_after = self.turn_after
            if self.turn_after is None:
                engine.last_turn = self.turn_before
            else:
                self.turn_after.turn_before = self.turn_before
            self.turn_before = self.turn_after = None
        return 0

    # ---- the queue

    cdef int _drop_queue(self) except -1:
        """Forget the content and the end that are queued."""
        cdef Nghttp2Engine engine = self.engine
        engine.queued -= self.octets + self.trailer_octets
        self._chunk = None
        self._more = self.trailers = None
        self.octets = self.trailer_octets = 0
        self.ended = False
        self.unschedule()
        return 0

    cdef int _queue_behind(self, bytes data) except -1:
        """Queue content behind what is queued; small pieces become one."""
        cdef Py_ssize_t last
        cdef bytes before
        if self._more is None:
            self._more = [data]
            return 0
        last = PyList_GET_SIZE(self._more) - 1
        before = <bytes>self._more[last]
        if PyBytes_GET_SIZE(before) + PyBytes_GET_SIZE(data) <= _JOINED_OCTETS:
            self._more[last] = before + data
        else:
            self._more.append(data)
        return 0

    cdef int pull(self, char *place, Py_ssize_t octets) except -1:
        """Move so many octets, no more than are queued, to a place."""
        cdef Py_ssize_t count
        self.octets -= octets
        while octets:
            count = min(octets, PyBytes_GET_SIZE(self._chunk) - self._offset)
            memcpy(place, PyBytes_AS_STRING(self._chunk) + self._offset, <size_t>count)
            place += count
            octets -= count
            self._offset += count
            if self._offset < PyBytes_GET_SIZE(self._chunk):
                continue
            self._offset = 0
            self._chunk = None
            if self._more is not None:
                self._chunk = <bytes>self._more[self._next]
                self._more[self._next] = None
                self._next += 1
                if self._next == PyList_GET_SIZE(self._more):
                    self._more = None
                    self._next = 0
        return 0

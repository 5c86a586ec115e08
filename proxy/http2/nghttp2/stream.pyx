"""One stream of `Nghttp2Engine`: its commands, what the library does not know about it, and what waits to be sent."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport int32_t
from libc.string cimport memcpy

from proxy.http2.engine cimport Stream
from proxy.http2.nghttp2.engine cimport Nghttp2Engine
from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_session_consume_stream

from proxy.http2.policy.fields import section_octets
from proxy.http2.policy.sending import JOINED_OCTETS as _JOINED_OCTETS

cdef Py_ssize_t JOINED_OCTETS = _JOINED_OCTETS


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
            engine.schedule(self)
        if end_stream:
            self.ended = True
            if not self.octets:
                engine.finish(self)
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
            engine.finish(self)
        engine.wake()

    cpdef reset(self, long code, bint after_data):
        cdef Nghttp2Engine engine = self.engine
        if engine is None:
            return
        if not self.muted or not after_data:
            self.reset_code = code
        self.muted = True
        if not self.octets and not engine.session.calling_back:
            engine.reset(self)
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
            engine.reset(self)
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

    # ---- the queue

    cdef int _drop_queue(self) except -1:
        """Forget the content and the end that are queued."""
        cdef Nghttp2Engine engine = self.engine
        engine.queued -= self.octets + self.trailer_octets
        self._chunk = None
        self._more = self.trailers = None
        self.octets = self.trailer_octets = 0
        self.ended = False
        engine.unschedule(self)
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
        if PyBytes_GET_SIZE(before) + PyBytes_GET_SIZE(data) <= JOINED_OCTETS:
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

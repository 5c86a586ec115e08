"""The engine on libnghttp2: commands, questions, and the order in which streams send.

The library's queue is empty between any two calls: what a command makes it queue is collected at once, or, while it
calls back, when it has returned. Content waits here, in a queue a stream, and `take` gives it one frame at a time:

* Streams take turns, a frame each: by itself the library would let a client's first stream send all it has.
* A frame is as full as windows and peer allow, and carries the end of the stream where that is known.
* Content is copied once, from the bytes that came in to the bytes that leave.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem, PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject, PyObject_Hash
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memchr, memcmp, memcpy

from proxy.http2.engine cimport Engine, Stream, StreamReceiver
from proxy.http2.nghttp2.libnghttp2 cimport *
from proxy.http2.nghttp2.options cimport python_memory, set_optional_limits
from proxy.http2.policy cimport flood
from proxy.http2.policy.flood cimport FloodGuard
from proxy.http2.policy.stream_history cimport StreamHistory

from proxy.http2.policy import compression, refusals, sending
from proxy.http2.policy.faults import ConnectionFault
from proxy.http2.policy.fields import (
    CONNECTION_SPECIFIC,
    Malformed,
    check_request,
    check_response,
    check_trailers,
    section_octets,
)

cdef class Nghttp2Engine(Engine)

include "outbox.pxi"
include "frames.pxi"
include "section_reader.pxi"
include "section_writer.pxi"
include "session.pxi"
include "stream.pxi"
include "receiving.pxi"

LIBRARY = f"libnghttp2 {nghttp2_version(0).version_str.decode()}"
"""Name and version of what is underneath, for the log."""

cdef Py_ssize_t _MAX_TAKEN_OCTETS = sending.MAX_TAKEN_OCTETS


cdef int _collect(Session session) except -1:
    return session.collect()


# A call of `_collect` as this type returns -1 and leaves the exception set, for `raise_pending`: a `try` around it
# would cost something even where nothing is raised.
ctypedef int (*_Unchecked)(Session) noexcept


@cython.final
cdef class Nghttp2Engine(Engine):
    """One side of one connection on libnghttp2; the contract is `Engine`.

    `session.handle` is NULL once the connection has failed. `first` to `last` are the live streams, by id.
    `first_turn` to `last_turn`: the streams that have content to send, in order. `resets_to_send` and `ends_to_send`:
    those whose reset, or whose end without content, is sent by the next `take`. `turn`: the stream whose content the
    library is to send now. `sure_window`: octets that a stream's window has room for, less those that are not
    acknowledged. `content`: of the DATA that is being read. `found`: the stream that was looked up last.
    """

    cdef Session session
    cdef bint client
    cdef FloodGuard guard
    cdef StreamHistory history
    cdef FrameReader frames
    cdef SectionReader reader
    cdef Nghttp2Stream first
    cdef Nghttp2Stream last
    cdef Py_ssize_t open_streams
    cdef bint going_away
    cdef bint peer_going_away
    cdef int32_t last_processed
    cdef uint32_t max_streams
    cdef Py_ssize_t sure_window
    cdef Py_ssize_t queued
    cdef Nghttp2Stream first_turn
    cdef Nghttp2Stream last_turn
    cdef list resets_to_send
    cdef list ends_to_send
    cdef Nghttp2Stream turn
    cdef bytes content
    cdef Nghttp2Stream found

    cdef list _senders
    cdef list _left
    cdef object _failure

    def __cinit__(self, *, bint client, limits, handler, frozenset watched_names=frozenset()):
        self.client = client
        self.guard = FloodGuard(limits.stream_window_octets)
        self.history = StreamHistory(client=client)
        self.frames = FrameReader(self.guard, self.history, client, limits.max_frame_octets, limits.max_continuations)
        self.reader = SectionReader(limits.max_field_section_octets, watched_names)
        self.session = Session(client=client)
        self.max_streams = limits.max_concurrent_streams
        self.sure_window = min(limits.stream_window_octets, _DEFAULT_WINDOW) // 2
        self.resets_to_send, self.ends_to_send = [], []
        self._senders, self._left = [], []
        self.session.open(limits, _CALLBACKS, <void *>self)

    # ---- receiving

    cpdef receive(self, bytes data):
        self._receive(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cpdef receive_from(self, bytearray buffer, Py_ssize_t octets):
        if not 0 <= octets <= PyByteArray_GET_SIZE(buffer):
            raise ValueError("no buffer has more octets than it can hold")
        self._receive(<const uint8_t *>PyByteArray_AS_STRING(buffer), octets)

    cdef int _receive(self, const uint8_t *octets, Py_ssize_t count) except -1:
        cdef int found
        if self.session.handle != NULL and count:
            try:
                self.frames.begin(octets, count)
                while self.session.handle != NULL:
                    found = self.frames.next()
                    if found == FOR_LIBRARY:
                        self.session.feed(self.frames.octets, self.frames.count)
                    elif found == FOR_ENGINE:
                        handle_frame(self, self.frames.octets, self.frames.count)
                        self.collect()
                    else:
                        break
            except Exception as exc:
                self._fail(exc)
        self._report_failure()
        return 0

    cpdef acknowledge_connection(self):
        cdef Py_ssize_t octets = self.owed_octets
        self.owed_octets = 0
        if self.session.handle != NULL and octets > 0:
            nghttp2_session_consume_connection(self.session.handle, <size_t>octets)
            self.collect()
            if self.session.outbox.size:
                self.wake()

    # ---- sending

    cpdef Stream open(self, list fields, bint end_stream, StreamReceiver receiver):
        cdef Nghttp2Stream stream
        cdef int32_t stream_id
        cdef object field
        if self.count_free_streams() <= 0:
            raise RuntimeError("no stream can be opened now: ask count_free_streams first")
        self.session.writer.check(fields)
        stream_id = <int32_t>nghttp2_session_get_next_stream_id(self.session.handle)
        stream = self.new_stream(stream_id)
        self.history.opened(stream_id)
        stream.receiver = receiver
        stream.has_sent_head = True
        for field in fields:
            if <bytes>PyTuple_GET_ITEM(field, 0) == b":method":
                stream.to_head = <bytes>PyTuple_GET_ITEM(field, 1) == b"HEAD"
                break
        stream.end_sent = end_stream
        self.session.submit_section(stream_id, True, fields, end_stream, <void *>stream)
        self.collect()
        self.wake()
        return stream

    cpdef ping(self, bytes payload):
        if PyBytes_GET_SIZE(payload) != 8:
            raise ValueError("a PING has eight octets")
        if self.session.handle != NULL:
            nghttp2_submit_ping(self.session.handle, NGHTTP2_FLAG_NONE, <const uint8_t *>PyBytes_AS_STRING(payload))
            self.collect()
            self.wake()

    cpdef offer_no_streams(self):
        if self.session.handle != NULL:
            self.session.max_streams = 0
            nghttp2_submit_settings(self.session.handle, NGHTTP2_FLAG_NONE, NULL, 0)
            self.collect()
            self.wake()

    cpdef announce_go_away(self):
        if self.session.handle != NULL:
            self.session.write_go_away(MAX_STREAM_ID, 0, b"")
            self.wake()

    cpdef go_away(self, long code, bytes debug):
        if self.session.handle != NULL:
            self.going_away = True
            self.session.write_go_away(self.last_processed, <uint32_t>code, debug)
            self.wake()

    cpdef bytes take(self):
        cdef Nghttp2Stream stream
        cdef list resets_to_send, ends_to_send
        if self.session.calling_back:
            return b""
        if self.session.handle != NULL:
            if PyList_GET_SIZE(self.ends_to_send):
                ends_to_send, self.ends_to_send = self.ends_to_send, []
                for stream in ends_to_send:
                    if stream.engine is not None and stream.ended:
                        stream.finish()
            if self.first_turn is not None:
                self._take_turns()
            if PyList_GET_SIZE(self.resets_to_send):
                resets_to_send, self.resets_to_send = self.resets_to_send, []
                for stream in resets_to_send:
                    if stream.engine is not None:
                        stream.send_reset()
        self.frames.unsent_acks = 0
        return self.session.outbox.take()

    cpdef report_sent(self):
        cdef list senders = self._senders
        cdef Nghttp2Stream stream
        cdef Py_ssize_t octets
        if PyList_GET_SIZE(senders):
            self._senders = []
            for stream in senders:
                octets, stream.leaving = stream.leaving, 0
                tell(self, stream, ON_SENT, None, False, octets)
        self._report_failure()

    cdef int _take_turns(self) except -1:
        """Have all content leave that the windows take, a frame a turn; keep in `_senders` whose it was."""
        cdef Py_ssize_t window = nghttp2_session_get_remote_window_size(self.session.handle)
        cdef Py_ssize_t most = nghttp2_session_get_remote_settings(self.session.handle, NGHTTP2_SETTINGS_MAX_FRAME_SIZE)
        cdef Py_ssize_t octets, room, total = 0, frames = 0
        cdef Nghttp2Stream stream
        window = min(window, _MAX_TAKEN_OCTETS)
        while window > 0 and self.first_turn is not None:
            stream = self.first_turn
            stream.unschedule()
            room = nghttp2_session_get_stream_remote_window_size(self.session.handle, <int32_t>stream.id)
            octets = min(stream.octets, room, window, most)
            if octets <= 0:
                continue
            if not stream.leaving:
                self._senders.append(stream)
            frames += 1
            stream.leaving += octets
            total += octets
            window -= octets
            self._send_frame(stream, octets)
            if self.session.handle == NULL:
                return 0
            if room > octets:
                stream.schedule()
        if total:
            self.guard.credit_content(total, frames)
        return 0

    cdef int _send_frame(self, Nghttp2Stream stream, Py_ssize_t octets) except -1:
        """Have the library send a frame of content, and what comes behind it if it is the last."""
        cdef bint last = octets == stream.octets
        cdef bint ends = last and stream.ended and stream.trailers is None
        self.turn = stream
        if self.session.submit_content(<int32_t>stream.id, octets, ends):
            self.collect()
        if self.turn is not None:
            self.turn = None
            return self._fail(ConnectionFault(INTERNAL_ERROR, "internal error: content that cannot be sent"))
        if ends:
            stream.ended = False
            stream.end_sent = True
        if last and stream.engine is not None:
            if stream.ended:
                stream.finish()
            if stream.reset_code >= 0:
                stream.send_reset()
        return 0

    # ---- questions

    cpdef Py_ssize_t count_open_streams(self):
        return self.open_streams

    cpdef Py_ssize_t count_free_streams(self):
        cdef int64_t ids
        if not self.client or self.session.handle == NULL or self.going_away or self.peer_going_away:
            return 0
        ids = (<int64_t>MAX_STREAM_ID - nghttp2_session_get_next_stream_id(self.session.handle)) // 2 + 1
        return max(0, min(<int64_t>self.peer_max_concurrent_streams - self.open_streams, ids))

    cpdef Py_ssize_t count_queued_octets(self):
        return self.queued

    cpdef Py_ssize_t count_frame_octets(self):
        return self.session.outbox.size

    cpdef long unfinished_block(self):
        return self.frames.unfinished_block()

    cpdef bint wants_to_send(self):
        if self.session.outbox.size or PyList_GET_SIZE(self.resets_to_send) or PyList_GET_SIZE(self.ends_to_send):
            return True
        if self.session.handle == NULL or self.first_turn is None:
            return False
        return nghttp2_session_get_remote_window_size(self.session.handle) > 0

    cpdef list live_streams(self):
        cdef list streams = []
        cdef Nghttp2Stream stream = self.first
        if self.session.handle == NULL:
            return self._left
        while stream is not None:
            streams.append(stream)
            stream = stream.following
        return streams

    # ---- streams

    cdef Nghttp2Stream new_stream(self, int32_t stream_id):
        """Add a stream."""
        cdef Nghttp2Stream stream = Nghttp2Stream.__new__(Nghttp2Stream)
        stream.id = stream_id
        stream.engine = self
        stream.previous = self.last
        if self.last is None:
            self.first = stream
        else:
            self.last.following = stream
        self.last = stream
        self.open_streams += 1
        return stream

    # ---- octets, from and for the library

    cdef int wake(self) except -1:
        """Have what is queued be taken soon."""
        if not self.handler.flush_scheduled:
            self.handler.schedule_flush()
        return 0

    cdef int collect(self) except -1:
        """Collect what the library has queued, unless it is calling back. A fault here is an internal error."""
        if self.session.calling_back or self.session.handle == NULL or (<_Unchecked>_collect)(self.session) == 0:
            return 0
        try:
            raise_pending()
        except Exception as exc:
            return self._fail(exc)

    cdef int _fail(self, exc) except -1:
        """End the connection with GOAWAY, over a fault or an internal error; the handler is told later."""
        cdef Nghttp2Stream stream
        cdef list left
        if not isinstance(exc, ConnectionFault):
            self.handler.on_internal_error(None, exc)
            exc = ConnectionFault(INTERNAL_ERROR, f"internal error: {type(exc).__name__}")
        if self.session.handle == NULL:
            return 0
        left = self.live_streams()
        self.going_away = True
        self.session.write_go_away(self.last_processed, exc.code, exc.reason.encode())
        self.session.close()
        self._left = left
        for stream in left:
            stream.leave()
        self.resets_to_send, self.ends_to_send, self._senders = [], [], []
        self.frames.release()
        self._failure = exc
        return self.wake()

    cdef int _report_failure(self) except -1:
        if self._failure is not None:
            fault, self._failure = self._failure, None
            self.handler.on_failed(fault.code, fault.reason)
        return 0

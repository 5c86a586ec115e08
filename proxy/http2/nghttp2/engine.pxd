from libc.stdint cimport int32_t, uint8_t, uint32_t

from proxy.http2.engine cimport Engine
from proxy.http2.nghttp2.frames cimport FrameReader
from proxy.http2.nghttp2.section_reader cimport SectionReader
from proxy.http2.nghttp2.session cimport Session
from proxy.http2.nghttp2.stream cimport Nghttp2Stream
from proxy.http2.policy.flood cimport FloodGuard
from proxy.http2.policy.stream_history cimport StreamHistory

cdef class Nghttp2Engine(Engine):
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

    cdef Nghttp2Stream new_stream(self, int32_t stream_id)
    cdef int forget(self, Nghttp2Stream stream) except -1
    cdef int schedule(self, Nghttp2Stream stream) except -1
    cdef int unschedule(self, Nghttp2Stream stream) except -1
    cdef int finish(self, Nghttp2Stream stream) except -1
    cdef int reset(self, Nghttp2Stream stream) except -1
    cdef int wake(self) except -1
    cdef int collect(self) except -1

    cdef int _receive(self, const uint8_t *octets, Py_ssize_t count) except -1
    cdef int _fail(self, long code, str reason) except -1
    cdef int _report_failure(self) except -1
    cdef int _take_turns(self) except -1
    cdef int _send_frame(self, Nghttp2Stream stream, Py_ssize_t octets) except -1

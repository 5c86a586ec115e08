from libc.stdint cimport int64_t

from proxy.http2.engine cimport Stream
from proxy.http2.nghttp2.engine cimport Nghttp2Engine

cdef class Nghttp2Stream(Stream):
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

    cdef int leave(self) except -1
    cdef bint _can_send(self, bint behind_head) except -1
    cdef int _drop_queue(self) except -1
    cdef int _queue_behind(self, bytes data) except -1
    cdef int pull(self, char *place, Py_ssize_t octets) except -1

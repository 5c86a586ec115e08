from libc.stdint cimport int32_t, int64_t

cdef class Stream:
    cdef int32_t id
    cdef object key
    cdef bint gone

    cdef bint has_head
    cdef bint to_head
    cdef bint ended_by_peer
    cdef bint muted
    cdef int64_t missing

    cdef bint has_sent_head
    cdef bint ended
    cdef bint end_sent
    cdef bint scheduled
    cdef list trailers
    cdef int64_t reset_code
    cdef Py_ssize_t octets
    cdef Py_ssize_t leaving

    cdef bytes _chunk
    cdef Py_ssize_t _offset
    cdef list _more
    cdef Py_ssize_t _next

    cdef int push(self, bytes data) except -1
    cdef int pull(self, char *place, Py_ssize_t octets) except -1
    cdef int drop(self) except -1
    cdef int _advance(self) except -1

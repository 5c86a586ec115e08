from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from proxy.http2.nghttp2.outbox cimport Outbox

cdef enum:
    KNOWN_LINES = 256
    KNOWN_WAYS = 4  # places that a line can have
    SEEN_LINES = 256
    CHECKED_LINES = 64

cdef struct Known:
    PyObject *field
    Py_ssize_t number

cdef class SectionWriter:
    cdef dict _lines
    cdef dict _names
    cdef Py_ssize_t _added
    cdef Py_ssize_t _evicted
    cdef Py_ssize_t _octets
    cdef Py_ssize_t _table_octets
    cdef Py_ssize_t _smallest
    cdef Py_ssize_t _told
    cdef uint64_t _seen[SEEN_LINES]
    cdef Known _known[KNOWN_LINES]
    cdef list _checked
    cdef Py_ssize_t _numbers[CHECKED_LINES]

    cdef int check(self, list fields) except -1
    cdef int write(self, list fields, Outbox outbox) except -1
    cdef int resize(self, uint32_t octets) except -1

    cdef Py_ssize_t _number(self, object field) except? -1
    cdef Py_ssize_t _place(self, Py_ssize_t number) noexcept
    cdef int _literal(self, tuple field, Outbox outbox) except -1
    cdef bint _was_seen(self, uint64_t hash_) noexcept
    cdef int _add(self, tuple field, Py_ssize_t octets) except -1
    cdef int _evict(self) except -1

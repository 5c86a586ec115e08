from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_rcbuf

cdef enum:
    REQUEST
    RESPONSE
    TRAILERS

cdef enum:
    KEPT_LINES = 64
    KEPT_WAYS = 4  # places that a line can have
    KEPT_NAMES = 32
    FIRST_LINES = 32

cdef struct Line:
    nghttp2_rcbuf *name
    nghttp2_rcbuf *value
    PyObject *field
    bint never
    Py_ssize_t octets
    int kind
    int64_t number

cdef class SectionReader:
    cdef str refusal
    cdef bint too_great
    cdef bint interim
    cdef bint has_watched
    cdef Py_ssize_t octets
    cdef int status
    cdef int64_t content_length
    cdef bytes method
    cdef bytes path

    cdef PyObject **_fields
    cdef Py_ssize_t _count
    cdef Py_ssize_t _capacity
    cdef frozenset _watched_names
    cdef int _section
    cdef uint32_t _met
    cdef Py_ssize_t _most_octets
    cdef PyObject *_method
    cdef PyObject *_path
    cdef Line _by_buffers[KEPT_LINES]
    cdef Line _by_name[KEPT_NAMES]

    cdef int begin(self, int section) except -1
    cdef int add(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1
    cdef list end(self, bint to_head, bint ends)

    cdef void _drop_fields(self) noexcept
    cdef void _keep_by_buffers(self, size_t slot, const Line *line) noexcept
    cdef bint _fits(self, Py_ssize_t octets) except -1
    cdef int _add_new(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1
    cdef int _take(self, const Line *line) except -1
    cdef bint _is_plain(self, bint to_head, bint ends) noexcept
    cdef int _ask_policy(self, list fields, bint to_head, bint ends) except -1

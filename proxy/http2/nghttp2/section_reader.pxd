from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t

from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_rcbuf

cdef enum:
    REQUEST
    RESPONSE
    TRAILERS

cdef enum:
    KEPT_LINES = 64
    KEPT_NAMES = 32
    LINE_KINDS = 16
    FIRST_LINES = 32

cdef struct Kept:
    nghttp2_rcbuf *name
    nghttp2_rcbuf *value
    PyObject *field
    Py_ssize_t octets
    int token
    bint never

cdef struct Repeated:
    nghttp2_rcbuf *name
    PyObject *field
    int token

cdef class SectionReader:
    cdef bint malformed
    cdef bint too_great
    cdef bint far_too_great
    cdef bint interim
    cdef bint has_watched
    cdef int status
    cdef int64_t content_length

    cdef PyObject **_lines
    cdef Py_ssize_t _count
    cdef Py_ssize_t _capacity
    cdef frozenset _watched_names

    cdef int _kind
    cdef bint _regular
    cdef uint32_t _met
    cdef Py_ssize_t _octets
    cdef Py_ssize_t _most_octets
    cdef PyObject *_values[LINE_KINDS]
    cdef Kept _kept[KEPT_LINES]
    cdef Repeated _repeated[KEPT_NAMES]

    cdef int begin(self, int kind) except -1
    cdef bint add_kept(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) noexcept
    cdef int add(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1
    cdef bytes method(self)
    cdef bytes path(self)
    cdef list end(self, bint to_head)

    cdef void _drop_lines(self) noexcept
    cdef int _grow(self) except -1
    cdef object _read(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never, int *token)
    cdef void _note(self, int token, object field) noexcept
    cdef bint _is_request(self) noexcept
    cdef bint _is_response(self, bint to_head) noexcept
    cdef bint _has_authority(self) noexcept
    cdef bint _has_length(self) noexcept

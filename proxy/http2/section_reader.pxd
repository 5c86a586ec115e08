from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t

from proxy.http2.libnghttp2 cimport nghttp2_rcbuf

cdef enum:
    REQUEST
    RESPONSE
    TRAILERS

cdef enum:
    # Why a section is malformed; `nghttp2_receiver` has the words.
    FIELD
    PSEUDO_FIELD
    AUTHORITY
    USER_INFO
    HOST_DIFFERS
    CONTENT_LENGTH
    SECTION_TOO_LARGE
    TOO_MANY_STREAMS
    GOING_AWAY
    STREAM_ORDER
    FLOW_CONTROL

cdef struct Kept:
    nghttp2_rcbuf *name
    nghttp2_rcbuf *value
    PyObject *field
    int token
    bint never

cdef struct Repeated:
    nghttp2_rcbuf *name
    PyObject *field
    int token

cdef class SectionReader:
    cdef list fields
    cdef bint malformed
    cdef int refusal
    cdef bint too_great
    cdef bint far_too_great
    cdef bint interim
    cdef int64_t content_length

    cdef int _kind
    cdef bint _regular
    cdef uint32_t _met
    cdef Py_ssize_t _octets
    cdef Py_ssize_t _most_octets
    cdef PyObject *_values[16]
    cdef Kept _kept[64]
    cdef Repeated _repeated[32]

    cdef int begin(self, int kind) except -1
    cdef int add(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1
    cdef list end(self, bint to_head)

    cdef object _read(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never, int *token)
    cdef void _note(self, int token, object field) noexcept
    cdef bint _is_request(self) noexcept
    cdef bint _is_response(self, bint to_head) noexcept
    cdef bint _has_authority(self) noexcept
    cdef bint _has_length(self) noexcept

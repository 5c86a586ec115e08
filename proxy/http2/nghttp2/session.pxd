from libc.stdint cimport int32_t, uint8_t, uint32_t

from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_session, nghttp2_session_callbacks
from proxy.http2.nghttp2.outbox cimport Outbox
from proxy.http2.nghttp2.section_writer cimport SectionWriter

cdef extern from *:
    """
    static inline void raise_pending(void) {}
    """
    void raise_pending() except *  # raises the exception that a callback has left, if it has

cdef enum:
    DEFAULT_WINDOW = 65535  # of a stream, before SETTINGS come, and of the connection

cdef class Session:
    cdef nghttp2_session *handle
    cdef bint client
    cdef bint calling_back
    cdef Outbox outbox
    cdef SectionWriter writer
    cdef uint32_t max_streams
    cdef Py_ssize_t max_interims
    cdef Py_ssize_t content_octets

    cdef list _section
    cdef dict _deferred

    cdef int open(self, object limits, nghttp2_session_callbacks *callbacks, void *owner) except -1
    cdef void close(self) noexcept
    cdef int feed(self, const uint8_t *data, Py_ssize_t count) except -1
    cdef int collect(self) except -1
    cdef int submit_section(self, int32_t stream_id, bint opens, list fields, bint end, void *stream) except -1
    cdef bint submit_content(self, int32_t stream_id, Py_ssize_t octets, bint ends)
    cdef int write_go_away(self, int32_t last_processed, uint32_t code, bytes debug) except -1

    cdef int _write_settings(self, const uint8_t *frame, Py_ssize_t count) except -1
    cdef int _write_section(self, const uint8_t *frame) except -1

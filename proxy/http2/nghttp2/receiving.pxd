from libc.stdint cimport uint8_t

from proxy.http2.nghttp2.engine cimport Nghttp2Engine
from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_session_callbacks
from proxy.http2.nghttp2.stream cimport Nghttp2Stream

cdef enum:  # what `tell` tells
    ON_REQUEST
    ON_RESPONSE
    ON_INTERIM
    ON_DATA
    ON_TRAILERS
    ON_RESET
    ON_SENT

cdef nghttp2_session_callbacks *callbacks() noexcept
cdef int handle_frame(Nghttp2Engine engine, const uint8_t *frame, Py_ssize_t count) except -1
cdef int tell(
    Nghttp2Engine engine, Nghttp2Stream stream, int event, object content, bint flag, long number
) except -1

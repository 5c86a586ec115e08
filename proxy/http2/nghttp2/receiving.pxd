from libc.stdint cimport uint8_t

from proxy.http2.nghttp2.engine cimport Nghttp2Engine
from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_session_callbacks

cdef nghttp2_session_callbacks *callbacks() noexcept
cdef int take_frame(Nghttp2Engine engine, const uint8_t *frame, Py_ssize_t count) except -1

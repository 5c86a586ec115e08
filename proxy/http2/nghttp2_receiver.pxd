from libc.stdint cimport int32_t, uint8_t, uint32_t

from proxy.http2.libnghttp2 cimport nghttp2_frame
from proxy.http2.nghttp2_connection cimport Connection
from proxy.http2.nghttp2_stream cimport Stream
from proxy.http2.section_reader cimport SectionReader

cdef class Receiver(Connection):
    cdef SectionReader _reader
    cdef bytes _content
    cdef list _refused

    cdef int _on_section(self, int32_t stream_id, bint end) except -1
    cdef int _on_request(self, int32_t stream_id, list fields, bint end) except -1
    cdef int _on_data(self, int32_t stream_id, bint end) except -1
    cdef int _on_reset(self, int32_t stream_id, uint32_t code) except -1
    cdef int _on_settings(self, const nghttp2_frame *frame) except -1

    cdef int _fault(self, Stream stream, uint32_t code, int refusal) except -1
    cdef int _on_suspicious_update(self, const uint8_t *frame) except -1
    cdef int _refuse(self, int32_t stream_id, uint32_t code, int refusal) except -1
    cdef int _report_reset(self, Stream stream, uint32_t code, bint by_peer) except -1

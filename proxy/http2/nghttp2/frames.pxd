from libc.stdint cimport int32_t, uint8_t, uint32_t

from proxy.http2.policy.flood cimport FloodGuard
from proxy.http2.policy.stream_history cimport StreamHistory

cdef extern from "nghttp2/nghttp2.h":
    enum:
        # types of frames (RFC 9113, 6)
        DATA "NGHTTP2_DATA"
        HEADERS "NGHTTP2_HEADERS"
        PRIORITY "NGHTTP2_PRIORITY"
        RST_STREAM "NGHTTP2_RST_STREAM"
        SETTINGS "NGHTTP2_SETTINGS"
        PUSH_PROMISE "NGHTTP2_PUSH_PROMISE"
        PING "NGHTTP2_PING"
        GOAWAY "NGHTTP2_GOAWAY"
        WINDOW_UPDATE "NGHTTP2_WINDOW_UPDATE"
        CONTINUATION "NGHTTP2_CONTINUATION"
        # flags
        ACK "NGHTTP2_FLAG_ACK"
        END_STREAM "NGHTTP2_FLAG_END_STREAM"
        END_HEADERS "NGHTTP2_FLAG_END_HEADERS"
        PADDED "NGHTTP2_FLAG_PADDED"
        # error codes (RFC 9113, 7)
        PROTOCOL_ERROR "NGHTTP2_PROTOCOL_ERROR"
        INTERNAL_ERROR "NGHTTP2_INTERNAL_ERROR"
        FLOW_CONTROL_ERROR "NGHTTP2_FLOW_CONTROL_ERROR"
        FRAME_SIZE_ERROR "NGHTTP2_FRAME_SIZE_ERROR"
        REFUSED_STREAM "NGHTTP2_REFUSED_STREAM"
        COMPRESSION_ERROR "NGHTTP2_COMPRESSION_ERROR"
        ENHANCE_YOUR_CALM "NGHTTP2_ENHANCE_YOUR_CALM"

cdef enum:
    FRAME_HEADER_OCTETS = 9
    MAX_STREAM_ID = 0x7FFFFFFF
    MOST_UNSENT_ACKS = 1000

cdef enum:  # what `FrameReader.next` has found
    NOTHING
    FOR_LIBRARY
    FOR_ENGINE

cdef class FrameReader:
    cdef const uint8_t *octets
    cdef Py_ssize_t count
    cdef int unsent_acks

    cdef Py_ssize_t _max_frame
    cdef Py_ssize_t _max_continuations
    cdef const uint8_t *_data
    cdef Py_ssize_t _left
    cdef uint8_t *_held
    cdef Py_ssize_t _held_octets
    cdef bint _held_is_done
    cdef bint _frame_is_ours
    cdef object _fault
    cdef Py_ssize_t _preface_left
    cdef bint _started
    cdef bint _acknowledged
    cdef bint _in_block
    cdef int32_t _block_stream
    cdef Py_ssize_t _continuations
    cdef FloodGuard _guard
    cdef StreamHistory _history

    cdef int begin(self, const uint8_t *data, Py_ssize_t count) except -1
    cdef int next(self) except -1
    cdef void release(self) noexcept
    cdef int32_t unfinished_block(self) noexcept

    cdef int _found(self, int what, const uint8_t *octets, Py_ssize_t count) except -1
    cdef bint _complete_held(self) except -1
    cdef int _check_length(self, const uint8_t *frame) except -1
    cdef int _hold(self, Py_ssize_t count) except -1
    cdef Py_ssize_t _walk(self, const uint8_t *data, Py_ssize_t count) except -1
    cdef bint _is_ours(self, const uint8_t *frame, Py_ssize_t length) except -1

cdef inline Py_ssize_t length_of(const uint8_t *frame) noexcept:
    return <Py_ssize_t>frame[0] << 16 | <Py_ssize_t>frame[1] << 8 | frame[2]

cdef inline int32_t stream_of(const uint8_t *frame) noexcept:
    return <int32_t>(number_at(frame + 5) & MAX_STREAM_ID)

cdef inline uint32_t number_at(const uint8_t *place) noexcept:
    return <uint32_t>place[0] << 24 | <uint32_t>place[1] << 16 | <uint32_t>place[2] << 8 | place[3]

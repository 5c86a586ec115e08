"""Cuts what is read into whole frames, counts them, and keeps some from the library.

Only whole frames go on, in runs as long as a read has them, so that the library reports content frame by frame and no
frame becomes two (Restate's client ends a connection that brings too many small ones). A length is looked at before its
payload is waited for. Every frame is counted (`policy.flood`), also where the library would skip it without a word.

PRIORITY, GOAWAY, suspicious window updates, surplus acknowledgements of SETTINGS and frames of unknown types are kept
from the library (the package says why), but not within a field block and not before SETTINGS, where any of them is a
fault that the library names. PUSH_PROMISE is a fault whenever it comes.
"""

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
    _PREFACE_OCTETS = 24
    _HARMLESS_INCREMENT = 1 << 30  # a greater one may push a window past 2^31-1

cdef enum:  # what `FrameReader.next` has found
    NOTHING
    FOR_LIBRARY
    FOR_ENGINE


@cython.final
@cython.no_gc
cdef class FrameReader:
    """Cuts what is read: `begin` with the octets of a read, then `next` until there is nothing.

    `octets` and `count` are what `next` has found, valid until the next call.
    `unsent_acks`: answers to PING and SETTINGS since the last flush; a peer that does not read must not make us keep
    them for ever (CVE-2019-9512). Faults raise ConnectionFault, after what came before them has been handed out.
    """

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

    def __cinit__(
        self, FloodGuard guard, StreamHistory history, bint client, Py_ssize_t max_frame, Py_ssize_t max_continuations
    ):
        self._guard = guard
        self._history = history
        self._max_frame = max_frame
        self._max_continuations = max_continuations
        self._preface_left = 0 if client else _PREFACE_OCTETS

    def __dealloc__(self):
        self.release()

    cdef int begin(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Take a read; the octets must stay where they are until `next` says that there is nothing."""
        self._data = data
        self._left = count
        return self._guard.credit_read()

    cdef int next(self) except -1:
        """Find a run of whole frames for the library, or one frame for the engine; hold what is left at the end."""
        cdef Py_ssize_t count
        if self._held_is_done:
            self.release()
        if self._frame_is_ours:
            self._frame_is_ours = False
            return self._found(FOR_ENGINE, self._data, FRAME_HEADER_OCTETS + length_of(self._data))
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        if self._preface_left and self._left:
            count = min(self._preface_left, self._left)
            self._preface_left -= count
            return self._found(FOR_LIBRARY, self._data, count)
        if self._held_octets:
            if not self._complete_held():
                return NOTHING
            self._held_is_done = True
            self.octets = self._held
            self.count = self._held_octets
            return FOR_ENGINE if self._is_ours(self._held, length_of(self._held)) else FOR_LIBRARY
        count = self._walk(self._data, self._left)
        if count:
            return self._found(FOR_LIBRARY, self._data, count)
        if self._frame_is_ours or self._fault is not None:
            return self.next()
        self._hold(self._left)
        return NOTHING

    cdef void release(self) noexcept:
        """Free the frame that is incomplete."""
        PyMem_Free(self._held)
        self._held = NULL
        self._held_octets = 0
        self._held_is_done = False

    cdef int32_t unfinished_block(self) noexcept:
        """Return the stream of the field block that has begun and not ended, 0 without one."""
        if self._in_block:
            return self._block_stream
        if self._held_octets >= FRAME_HEADER_OCTETS and self._held[3] == HEADERS:
            return stream_of(self._held)
        return 0

    cdef int _found(self, int what, const uint8_t *octets, Py_ssize_t count) except -1:
        self.octets = octets
        self.count = count
        self._data += count
        self._left -= count
        return what

    cdef bint _complete_held(self) except -1:
        """Add to the incomplete frame; return True if it is complete now."""
        if self._held_octets < FRAME_HEADER_OCTETS:
            self._hold(min(FRAME_HEADER_OCTETS - self._held_octets, self._left))
            if self._held_octets < FRAME_HEADER_OCTETS:
                return False
        self._check_length(self._held)
        self._hold(min(FRAME_HEADER_OCTETS + length_of(self._held) - self._held_octets, self._left))
        return self._held_octets == FRAME_HEADER_OCTETS + length_of(self._held)

    cdef int _hold(self, Py_ssize_t count) except -1:
        """Keep so many octets of the read for later."""
        cdef void *held
        if count:
            held = PyMem_Realloc(self._held, <size_t>(self._held_octets + count))
            if held == NULL:
                raise MemoryError
            self._held = <uint8_t *>held
            memcpy(self._held + self._held_octets, self._data, <size_t>count)
            self._held_octets += count
            self._data += count
            self._left -= count
        return 0

    cdef int _check_length(self, const uint8_t *frame) except -1:
        if length_of(frame) > self._max_frame:
            raise ConnectionFault(FRAME_SIZE_ERROR, "a frame is longer than SETTINGS_MAX_FRAME_SIZE")
        return 0

    cdef Py_ssize_t _walk(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Return how many octets of whole frames are for the library, up to a fault or a frame that is not for it."""
        cdef Py_ssize_t place = 0
        try:
            while count - place >= FRAME_HEADER_OCTETS:
                self._check_length(data + place)
                if count - place - FRAME_HEADER_OCTETS < length_of(data + place):
                    break
                if self._is_ours(data + place, length_of(data + place)):
                    self._frame_is_ours = True
                    break
                place += FRAME_HEADER_OCTETS + length_of(data + place)
        except ConnectionFault as exc:
            self._fault = exc
        return place

    cdef bint _is_ours(self, const uint8_t *frame, Py_ssize_t length) except -1:
        """Charge what the frame costs; return whether the library is not to see it."""
        cdef uint8_t kind = frame[3], flags = frame[4]
        cdef uint32_t increment
        cdef bint surplus
        if self._in_block:
            self._in_block = kind != CONTINUATION or not flags & END_HEADERS
            self._continuations += 1
            if self._continuations > self._max_continuations:
                raise ConnectionFault(ENHANCE_YOUR_CALM, "a field block has too many CONTINUATION frames")
            return False
        self._continuations = 0
        if kind == DATA:
            self._guard.charge_late_content(length)  # given back if the stream is live, which the library tells
            if not flags & END_STREAM and (length == 0 or (flags & PADDED and frame[9] == length - 1)):
                self._guard.charge_empty_data()
        elif kind == PUSH_PROMISE:
            # The library would take it until our SETTINGS are acknowledged.
            raise ConnectionFault(PROTOCOL_ERROR, "a push that we did not allow")
        elif kind == HEADERS:
            self._in_block = not flags & END_HEADERS
            self._block_stream = stream_of(frame)
            self._guard.charge_control_frame()
        elif kind == SETTINGS and not flags & ACK:
            self._started = True
            self.unsent_acks += 1
            self._guard.charge_settings()
        elif kind == PING and not flags & ACK:
            self.unsent_acks += 1
            self._guard.charge_control_frame()
        elif kind != RST_STREAM:  # which is charged as a reset if its stream is live
            self._guard.charge_control_frame()
        if self.unsent_acks > MOST_UNSENT_ACKS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "more to acknowledge than the peer reads")
        if not self._started:
            return False
        if kind == DATA:
            self._history.content(stream_of(frame), flags & END_STREAM)
        elif kind == HEADERS:
            self._history.section(stream_of(frame), flags & END_STREAM)
        elif kind == RST_STREAM:
            self._history.reset(stream_of(frame))
        elif kind == WINDOW_UPDATE and length == 4 and stream_of(frame):
            increment = number_at(frame + FRAME_HEADER_OCTETS) & MAX_STREAM_ID
            return increment == 0 or increment > _HARMLESS_INCREMENT
        elif kind == SETTINGS and flags & ACK and length == 0 and stream_of(frame) == 0:
            # The library ends the connection over one too many, so it gets the first alone.
            surplus = self._acknowledged
            self._acknowledged = True
            return surplus
        return kind == GOAWAY or kind == PRIORITY or kind > CONTINUATION


cdef inline Py_ssize_t length_of(const uint8_t *frame) noexcept:
    return <Py_ssize_t>frame[0] << 16 | <Py_ssize_t>frame[1] << 8 | frame[2]


cdef inline int32_t stream_of(const uint8_t *frame) noexcept:
    return <int32_t>(number_at(frame + 5) & MAX_STREAM_ID)


cdef inline uint32_t number_at(const uint8_t *place) noexcept:
    return <uint32_t>place[0] << 24 | <uint32_t>place[1] << 16 | <uint32_t>place[2] << 8 | place[3]

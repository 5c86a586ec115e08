"""From octets to frames, before the library sees any: cutting, counting, and keeping some from it.

Only whole frames go on, in runs as long as a read has them, so that the library reports content frame by frame and no
frame becomes two (Restate's client ends a connection that brings too many small ones). A length is looked at before its
payload is waited for. Every frame is counted (see `flood`), also where the library would skip it without a word.

PRIORITY, GOAWAY, suspicious window updates, surplus acknowledgements of SETTINGS and frames of unknown types are kept
from the library (`nghttp2_connection` says why), but not within a field block and not before SETTINGS, where any of them
is a fault that the library names. PUSH_PROMISE is a fault whenever it comes.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from proxy.http2 import flood, stream_history
from proxy.http2.framing import ConnectionFault

cdef int _MOST_RESETS = flood.MOST_RESETS
cdef int _MOST_CHATTER = flood.MOST_CHATTER
cdef int _READ_EARNS = flood.READ_EARNS
cdef int _HEAD_EARNS = flood.HEAD_EARNS
cdef int _CONTENT_EARNS = flood.CONTENT_EARNS
cdef int _EMPTY_DATA_COSTS = flood.EMPTY_DATA_COSTS
cdef int _SETTINGS_COST = flood.SETTINGS_COST

cdef str _AFTER_THE_END = stream_history.AFTER_THE_END
cdef str _PASSED_OVER = stream_history.PASSED_OVER
if stream_history.REMEMBERED != REMEMBERED:
    raise ImportError("stream_history and nghttp2_frames.pxd differ in how many streams they remember")


@cython.no_gc
cdef class Frames:
    """What has come of frames and is not yet whole, and the accounts of what they cost. Faults raise ConnectionFault.

    `preface_left`: octets of the client preface to come. `pings`: ours that are not answered. `unsent_acks`: answers to
    PING and SETTINGS since `take`; a peer that does not read must not make us keep them for ever (CVE-2019-9512).
    """

    def __cinit__(self, *args, **kwargs):
        self._resets = _MOST_RESETS
        self._chatter = _MOST_CHATTER
        self._highest = -1

    def __dealloc__(self):
        self.release()

    cdef int feed(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Take a run of whole frames, perhaps none."""
        raise NotImplementedError

    cdef int handle(self, const uint8_t *frame, Py_ssize_t length) except -1:
        """Take a frame that the library is not to see."""
        raise NotImplementedError

    cdef int take_in(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Complete the frame that is held, pass on what is whole, and hold what is left."""
        cdef Py_ssize_t octets
        if self.preface_left:
            octets = min(self.preface_left, count)
            self.feed(data, octets)
            self.preface_left -= octets
            data += octets
            count -= octets
        if self._held_octets:
            octets = self._complete(data, count)
            data += octets
            count -= octets
        if count:
            octets = self._walk(data, count)
            self._hold(data + octets, count - octets)
        return 0

    cdef void release(self) noexcept:
        """Let go of what is held."""
        PyMem_Free(self._held)
        self._held = NULL
        self._held_octets = 0

    cdef Py_ssize_t _complete(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Add to the frame that is held, and pass it on if it is whole. Return how many octets were used."""
        cdef Py_ssize_t used = 0, missing
        if self._held_octets < FRAME_HEADER_OCTETS:
            used = min(FRAME_HEADER_OCTETS - self._held_octets, count)
            self._hold(data, used)
            if self._held_octets < FRAME_HEADER_OCTETS:
                return used
        if length_of(self._held) <= self.max_frame:
            missing = FRAME_HEADER_OCTETS + length_of(self._held) - self._held_octets
            missing = min(missing, count - used)
            self._hold(data + used, missing)
            used += missing
        if self._walk(self._held, self._held_octets):
            self.release()
        return used

    cdef int _hold(self, const uint8_t *data, Py_ssize_t count) except -1:
        cdef void *held
        if count:
            held = PyMem_Realloc(self._held, <size_t>(self._held_octets + count))
            if held == NULL:
                raise MemoryError
            self._held = <uint8_t *>held
            memcpy(self._held + self._held_octets, data, <size_t>count)
            self._held_octets += count
        return 0

    cdef Py_ssize_t _walk(self, const uint8_t *data, Py_ssize_t count) except -1:
        """Pass whole frames on. Return how many octets they are."""
        cdef Py_ssize_t place = 0, fed = 0, length
        cdef bint ours
        while count - place >= FRAME_HEADER_OCTETS:
            length = length_of(data + place)
            if length > self.max_frame:
                self.feed(data + fed, place - fed)
                raise ConnectionFault(FRAME_SIZE_ERROR, "a frame is longer than SETTINGS_MAX_FRAME_SIZE")
            if count - place - FRAME_HEADER_OCTETS < length:
                break
            try:
                ours = self._is_ours(data + place, length)
            except ConnectionFault:
                self.feed(data + fed, place - fed)
                raise
            if ours:
                self.feed(data + fed, place - fed)
                self.handle(data + place, length)
                fed = place + FRAME_HEADER_OCTETS + length
            place += FRAME_HEADER_OCTETS + length
        self.feed(data + fed, place - fed)
        return place

    cdef bint _is_ours(self, const uint8_t *frame, Py_ssize_t length) except -1:
        """Count what the frame costs; return whether the library is not to see it."""
        cdef uint8_t kind = frame[3], flags = frame[4]
        cdef uint32_t increment
        cdef bint surplus
        if self._in_block:
            self._in_block = kind != CONTINUATION or not flags & END_HEADERS
            self._continuations += 1
            if self._continuations > self.max_continuations:
                raise ConnectionFault(ENHANCE_YOUR_CALM, "a field block has too many CONTINUATION frames")
            return False
        self._continuations = 0
        if kind == DATA:
            if not flags & END_STREAM and (length == 0 or (flags & PADDED and frame[9] == length - 1)):
                self.spend(_EMPTY_DATA_COSTS)
        elif kind == PUSH_PROMISE:
            # The library would take it until our SETTINGS are acknowledged.
            raise ConnectionFault(PROTOCOL_ERROR, "a push that we did not allow")
        elif kind == HEADERS:
            self._in_block = not flags & END_HEADERS
            self.spend(1)
        elif kind == SETTINGS and not flags & ACK:
            self._started = True
            self.unsent_acks += 1
            self.spend(_SETTINGS_COST)
        elif kind == PING and not flags & ACK:
            self.unsent_acks += 1
            self.spend(1)
        elif kind == PING and self.pings:
            self.pings -= 1
        elif kind != RST_STREAM:  # which costs something else if its stream is live
            self.spend(1)
        if self.unsent_acks > MOST_UNSENT_ACKS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "more to acknowledge than the peer reads")
        if not self._started:
            return False
        if kind == DATA or kind == HEADERS or kind == RST_STREAM:
            self._note(frame)
            return False
        if kind == WINDOW_UPDATE and length == 4 and stream_of(frame):
            increment = number_at(frame + FRAME_HEADER_OCTETS) & MAX_STREAM_ID
            return increment == 0 or increment > MOST_HARMLESS_INCREMENT
        if kind == SETTINGS and flags & ACK and length == 0 and stream_of(frame) == 0:
            # We send SETTINGS once; the library ends the connection when they are acknowledged twice.
            surplus = self._acknowledged
            self._acknowledged = True
            return surplus
        return kind == GOAWAY or kind == PRIORITY or kind > CONTINUATION

    # ---- the peer's half of each of the latest streams (see `stream_history`)

    cdef void opened(self, int32_t stream_id) noexcept:
        """Note the next stream, ours or the peer's; its id is odd, and higher than that of the one before."""
        cdef int32_t passed_over = max(self._highest + 2, stream_id - 2 * (REMEMBERED - 1))
        while passed_over < stream_id:
            self._states[(passed_over >> 1) % REMEMBERED] = NEVER_OPENED
            passed_over += 2
        self._states[(stream_id >> 1) % REMEMBERED] = OPEN
        self._highest = stream_id

    cdef bint _is_remembered(self, int32_t stream_id) noexcept:
        return stream_id & 1 and stream_id <= self._highest and stream_id > self._highest - 2 * REMEMBERED

    cdef int _note(self, const uint8_t *frame) except -1:
        """Note HEADERS, DATA or RST_STREAM; raise ConnectionFault over a frame on a stream that the peer has ended."""
        cdef int32_t stream_id = stream_of(frame)
        cdef uint8_t *state
        if frame[3] == HEADERS and stream_id > self._highest and stream_id & 1 and not self.client:
            self.opened(stream_id)
        elif not self._is_remembered(stream_id):
            return 0
        state = &self._states[(stream_id >> 1) % REMEMBERED]
        if frame[3] == RST_STREAM:
            if state[0] == OPEN:
                state[0] = ENDED
        elif state[0] == ENDED:
            raise ConnectionFault(STREAM_CLOSED, _AFTER_THE_END)
        elif state[0] == NEVER_OPENED:
            raise ConnectionFault(PROTOCOL_ERROR, _PASSED_OVER)
        elif frame[4] & END_STREAM:
            state[0] = ENDED
        return 0

    # ---- accounts (see `flood`)

    cdef void earn_by_read(self) noexcept:
        self._chatter = min(_MOST_CHATTER, self._chatter + _READ_EARNS)

    cdef void earn_by_head(self) noexcept:
        """A well-formed head came in; what its frame cost is given back."""
        self._chatter = min(_MOST_CHATTER, self._chatter + _HEAD_EARNS + 1)

    cdef void earn_by_content(self, Py_ssize_t octets, Py_ssize_t frames) noexcept:
        """Content came in or went out."""
        self._chatter = <int>min(_MOST_CHATTER, self._chatter + _CONTENT_EARNS * (frames + (octets >> 10)))

    cdef void earn_by_answer(self) noexcept:
        """A final response head went out, or came in."""
        self._resets = min(_MOST_RESETS, self._resets + 1)

    cdef int spend(self, int cost) except -1:
        self._chatter -= cost
        if self._chatter < 0:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many frames to no effect")
        return 0

    cdef int spend_reset(self) except -1:
        """The peer cancelled a stream before we answered, or made us reset or refuse one."""
        self._resets -= 1
        if self._resets < 0:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many resets")
        return 0

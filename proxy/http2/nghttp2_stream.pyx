"""One stream of `Nghttp2Engine`: what the library does not know about it, and what waits to be sent on it."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Stream:
    """A stream that is not over in both directions.

    `key` is the id as an int, made once, for events to share. `gone`: it is over; whoever still has it in a list skips it.

    What has come: `has_head` (request head, or final response head); `to_head`, our request was HEAD; `ended_by_peer`;
    `muted`, nobody wants to hear of it, because it was reset or is about to be; `missing` octets of content that were
    announced, -1 where nothing was.

    What is to go: `has_sent_head`; `ended`, the end is queued behind the content, as `trailers` if there are any;
    `end_sent`; `scheduled`, it has a turn; `reset_code` to send behind all that, -1 for none; `octets` of content that
    are queued, and `leaving` in the bytes being taken.
    """

    def __cinit__(self):
        self.missing = self.reset_code = -1

    cdef int push(self, bytes data) except -1:
        """Queue content that is not empty."""
        if self._chunk is None:
            self._chunk = data
        elif self._more is None:
            self._more = [data]
        else:
            self._more.append(data)
        self.octets += PyBytes_GET_SIZE(data)
        return 0

    cdef int pull(self, char *place, Py_ssize_t octets) except -1:
        """Move so many octets, no more than are queued, to a place."""
        cdef Py_ssize_t count
        self.octets -= octets
        while octets:
            count = min(octets, PyBytes_GET_SIZE(self._chunk) - self._offset)
            memcpy(place, PyBytes_AS_STRING(self._chunk) + self._offset, <size_t>count)
            place += count
            octets -= count
            self._offset += count
            if self._offset == PyBytes_GET_SIZE(self._chunk):
                self._advance()
        return 0

    cdef int drop(self) except -1:
        """Forget all that is queued."""
        self._chunk = None
        self._more = self.trailers = None
        self._offset = self._next = self.octets = 0
        self.ended = False
        self.reset_code = -1
        return 0

    cdef int _advance(self) except -1:
        self._offset = 0
        self._chunk = None
        if self._more is not None:
            self._chunk = <bytes>self._more[self._next]
            self._more[self._next] = None
            self._next += 1
            if self._next == len(self._more):
                self._more = None
                self._next = 0
        return 0

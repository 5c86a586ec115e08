"""The octets that are to leave on one connection: a bytes object that grows, and is handed out without a copy."""

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    PyObject *_new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) except NULL
    char *_octets_of "PyBytes_AS_STRING"(PyObject *) noexcept

# With its header it is below 512 octets, which Python takes from its own pools, in a fifth of malloc's instructions.
cdef Py_ssize_t _FIRST_CAPACITY = 440
cdef Py_ssize_t _MOST_EXPECTED = 512 << 10


@cython.final
@cython.no_gc
cdef class Outbox:
    """Frames in the order they are to leave."""

    cdef PyObject *_held
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _expected
    cdef Py_ssize_t size

    def __cinit__(self):
        self._expected = _FIRST_CAPACITY

    def __dealloc__(self):
        Py_XDECREF(self._held)

    cdef char *room(self, Py_ssize_t octets) except NULL:
        """Return a place for so many octets, which the caller must fill; it is valid until the next call."""
        cdef Py_ssize_t needed = self.size + octets
        cdef char *place
        if needed > self._capacity:
            if self._held == NULL:
                # As much as last time: to grow there by doubling would copy it all once more.
                self._capacity = max(needed, self._expected)
                self._held = _new_bytes(NULL, self._capacity)
            else:
                needed = max(needed, self._capacity * 2)
                try:
                    _PyBytes_Resize(&self._held, needed)
                except MemoryError:
                    # The octets are gone with it.
                    self._capacity = self.size = 0
                    raise
                self._capacity = needed
        place = _octets_of(self._held) + self.size
        self.size += octets
        return place

    cdef int write(self, const void *octets, Py_ssize_t count) except -1:
        """Append a copy of these octets."""
        memcpy(self.room(count), octets, <size_t>count)
        return 0

    cdef int write_frame_header(self, Py_ssize_t length, int kind, int flags, int32_t stream_id) except -1:
        """Append the nine octets before a frame's payload (RFC 9113, 4.1)."""
        put_frame_header(self.room(9), length, kind, flags, stream_id)
        return 0

    cdef int write_long(self, uint32_t number) except -1:
        """Append a number of four octets."""
        cdef char *place = self.room(4)
        place[0] = <char>(number >> 24)
        place[1] = <char>(number >> 16)
        place[2] = <char>(number >> 8)
        place[3] = <char>number
        return 0

    cdef char *at(self, Py_ssize_t place) noexcept:
        """Return the octets from a place on that is within `size`; valid until the next call."""
        return _octets_of(self._held) + place

    cdef bytes take(self):
        """Return everything and hold nothing."""
        cdef bytes taken
        if not self.size:
            return b""
        self._expected = max(_FIRST_CAPACITY, min(self.size, _MOST_EXPECTED))
        _PyBytes_Resize(&self._held, self.size)
        taken = <bytes><object>self._held
        Py_XDECREF(self._held)
        self._held = NULL
        self._capacity = self.size = 0
        return taken


cdef void put_frame_header(char *place, Py_ssize_t length, int kind, int flags, int32_t stream_id) noexcept:
    """Write a frame header at a place of nine octets."""
    place[0] = <char>(length >> 16)
    place[1] = <char>(length >> 8)
    place[2] = <char>length
    place[3] = <char>kind
    place[4] = <char>flags
    place[5] = <char>(stream_id >> 24)
    place[6] = <char>(stream_id >> 16)
    place[7] = <char>(stream_id >> 8)
    place[8] = <char>stream_id

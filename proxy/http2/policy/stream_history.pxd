cimport cython

cdef long _MASK
cdef int _NEVER_OPENED
cdef int _OPEN
cdef int _ENDED

@cython.final
cdef class StreamHistory:
    cdef bint _client
    cdef readonly long highest
    cdef bytearray _states

    @cython.locals(passed_over=long)
    cpdef int opened(self, long stream_id) except -1
    @cython.locals(opens=bint)
    cpdef bint section(self, long stream_id, bint end) except -1
    @cython.locals(state=int)
    cpdef int content(self, long stream_id, bint end) except -1
    cpdef int reset(self, long stream_id) except -1
    cdef bint _is_remembered(self, long stream_id) noexcept

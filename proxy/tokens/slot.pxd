cdef double _NEVER

cdef class Slot:
    cdef public object token
    cdef public bint used
    cdef double _until

    cpdef usable_token(self, double now)
    cpdef fill(self, token)
    cpdef clear(self)
    cpdef double usable_seconds(self, double now)

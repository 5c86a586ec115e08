cdef class Budget:
    cdef public Py_ssize_t limit_octets
    cdef public Py_ssize_t queued_octets
    cdef set _waiting

    cpdef bint is_used_up(self)
    cpdef bint is_crowded(self)
    cpdef change(self, Py_ssize_t octets)
    cpdef wait(self, wake)
    cpdef leave(self, wake)

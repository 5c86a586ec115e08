cimport cython

cdef Py_ssize_t _NOTICEABLE_SHARE
cdef Py_ssize_t _LARGE_EXCHANGE_OCTETS

@cython.final
cdef class Budget:
    cdef public Py_ssize_t limit_octets
    cdef readonly Py_ssize_t queued_octets
    cdef set _holders
    cdef dict _known
    cdef object _call_soon
    cdef bint _relief_scheduled
    cdef set _waiting

    cpdef bint is_used_up(self)
    cpdef bint is_crowded(self)
    @cython.locals(holder=Holder)
    cpdef join(self, Account account, key)
    @cython.locals(holder=Holder, account=Account, noticeable=Py_ssize_t, sharing=Py_ssize_t)
    cpdef bint exceeds_share(self, Py_ssize_t octets)
    cpdef change(self, Py_ssize_t octets)
    cpdef close_account(self, Account account)
    @cython.locals(holder=Holder)
    cdef _leave(self, Account account)

@cython.final
cdef class Holder:
    cdef readonly set accounts
    cdef readonly object key
    cdef readonly Py_ssize_t octets

@cython.final
cdef class Account:
    cdef readonly Budget budget
    cdef readonly Holder holder
    cdef readonly Py_ssize_t octets
    cdef readonly object give_up
    cdef public object on_cancel
    cdef public bint held_back

    cpdef change(self, Py_ssize_t octets)
    cpdef bint exceeds_share(self)

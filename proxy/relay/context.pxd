cimport cython

from proxy.observe.exchange cimport RouteObservers
from proxy.tokens.slot cimport Slot
from proxy.upstream.origin_pool cimport OriginPool

@cython.final
cdef class RouteContext:
    cdef readonly object route
    cdef readonly object key
    cdef readonly Slot slot
    cdef readonly OriginPool pool
    cdef readonly RouteObservers observers
    cdef public Py_ssize_t exchanges
    cdef public bint retired
    cdef readonly bint is_open
    cdef public bint used
    cdef readonly tuple scheme
    cdef readonly tuple authority
    cdef object _token
    cdef tuple _token_line

    @cython.locals(line=tuple)
    cpdef tuple token_line(self, token)

@cython.final
cdef class Destination:
    cdef readonly RouteContext context
    cdef readonly tuple path
    cdef readonly object get_kind
    cdef readonly object post_kind

cimport cython

from proxy.relay.context cimport Destination, RouteContext

@cython.final
cdef class OpenContexts:
    cdef readonly object routes
    cdef object _make
    cdef object _on_evicted
    cdef readonly dict contexts
    cdef readonly dict labelled
    cdef readonly dict destinations
    cdef dict _authorities

    cpdef bint is_allowed(self, bytes authority)
    @cython.locals(context=RouteContext)
    cpdef Destination destination(self, bytes authority, bytes path, tuple lines, match)

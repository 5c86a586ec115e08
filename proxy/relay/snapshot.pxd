cimport cython

from proxy.relay.context cimport Destination, RouteContext
from proxy.relay.open_contexts cimport OpenContexts
from proxy.relay.signing cimport deployment_lines, request_authority

@cython.final
cdef class Snapshot:
    cdef readonly object table
    cdef readonly dict contexts
    cdef readonly dict destinations
    cdef readonly OpenContexts open_contexts
    cdef bytes _last_path
    cdef Destination _last
    cdef object _tokens
    cdef object _pools
    cdef object _observed

    @cython.locals(open_contexts=OpenContexts, authority=bytes, known=Destination)
    cpdef Destination known(self, bytes path, list head, bint by_authority)
    @cython.locals(open_contexts=OpenContexts, authority=bytes)
    cpdef Destination destination(self, bytes path, list head, bint by_authority)

cimport cython

from proxy.upstream.connection cimport ConnectionOwner, UpstreamConnection

cdef class OriginPool(ConnectionOwner):
    cdef readonly object origin
    cdef object _observer
    cdef readonly bint closed
    cdef readonly list connections
    cdef public Py_ssize_t opening
    cdef public Py_ssize_t expected_streams
    cdef public Py_ssize_t failures
    cdef public object failure
    cdef public object pause
    cdef readonly Py_ssize_t waiting
    cdef public object on_wanted
    cdef list _heap
    cdef Py_ssize_t _tickets

    cpdef bint has_fruitless(self)
    @cython.locals(connections=list, connection=UpstreamConnection, octets=Py_ssize_t)
    cpdef bint exceeds_share(self)
    cpdef UpstreamConnection ready(self)
    @cython.locals(connection=UpstreamConnection)
    cpdef UpstreamConnection free(self)
    cpdef connection_changed(self, UpstreamConnection connection)
    cpdef serve(self)

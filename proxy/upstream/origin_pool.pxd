cimport cython

from proxy.connection.budget cimport Account
from proxy.http2.engine cimport Stream, StreamReceiver
from proxy.upstream.connection cimport ConnectionOwner, UpstreamConnection

cdef class OriginPool(ConnectionOwner):
    cdef readonly object origin
    cdef object _observer
    cdef UpstreamConnection _barren
    cdef readonly bint closed
    cdef readonly list connections
    cdef public Py_ssize_t opening
    cdef public Py_ssize_t expected_streams
    cdef public Py_ssize_t failures
    cdef public object failure
    cdef public Py_ssize_t fruitless
    cdef public double fruitless_at
    cdef public object on_fruitless
    cdef public bint outage
    cdef public object pause
    cdef readonly Py_ssize_t waiting
    cdef public object on_wanted
    cdef readonly object queue

    cpdef bint has_fruitless(self)
    @cython.locals(connection=UpstreamConnection)
    cpdef bint exceeds_share(self)
    cpdef UpstreamConnection ready(self)
    @cython.locals(connection=UpstreamConnection)
    cpdef UpstreamConnection free(self)
    cpdef connection_changed(self, UpstreamConnection connection)
    @cython.locals(
        connection=UpstreamConnection, stream=Stream, receiver=StreamReceiver,
        held=dict, most=dict, mine=dict, largest=list,
    )
    cpdef bint give_way(self, owner)
    cpdef serve(self)

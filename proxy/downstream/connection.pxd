cimport cython

from proxy.connection.protocol cimport Http2Protocol, RequestAcceptor
from proxy.http2.engine cimport Stream, StreamReceiver

cdef Py_ssize_t _MOST_CANCELLED

cdef class DownstreamConnection(Http2Protocol):
    cdef readonly double asked_at
    cdef RequestAcceptor _acceptor
    cdef object _on_change
    cdef object _replaced
    cdef bint _peer_sent_go_away
    cdef bint _cut_off
    cdef readonly Py_ssize_t requests
    cdef Py_ssize_t _cancelled
    cdef object _next_step
    cdef int _steps_taken

    cpdef Py_ssize_t unwritten_octets(self)
    cpdef on_cancelled(self, bint overdrawn)
    @cython.locals(stream=Stream, receiver=StreamReceiver)
    cpdef abort_streams(self, str reason)

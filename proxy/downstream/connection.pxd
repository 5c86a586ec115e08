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
    cpdef Py_ssize_t held_octets(self, Stream stream)
    cpdef on_request(self, Stream stream, list fields, bint end_stream)
    cpdef on_go_away(self, long last_stream_id, long code, bytes debug)
    cpdef on_ping_acknowledged(self, bytes payload)
    cpdef on_stream_lost(self, StreamReceiver receiver, str reason)
    cpdef on_lost(self, str reason)
    cpdef after_turn(self)
    cpdef on_cancelled(self, bint overdrawn)
    @cython.locals(stream=Stream, receiver=StreamReceiver)
    cpdef abort_streams(self, str reason)

cimport cython

from proxy.connection.protocol cimport Http2Protocol
from proxy.http2.engine cimport Stream, StreamReceiver

cdef class ConnectionOwner:
    cpdef connection_changed(self, UpstreamConnection connection)

cdef class UpstreamConnection(Http2Protocol):
    cdef readonly object origin
    cdef readonly object ready
    cdef public Py_ssize_t reserved
    cdef public bint retiring
    cdef readonly bint fruitless
    cdef public ConnectionOwner owner
    cdef readonly object cancels
    cdef object _timing
    cdef object _observer
    cdef long _last_stream_id
    cdef object _timer
    cdef object _is_closing
    cdef double _heard_at
    cdef double _ready_at
    cdef bint _unheard
    cdef str _go_away_error
    cdef object _pinged_at
    cdef object _stalled_at
    cdef Py_ssize_t _stalled_octets

    cpdef Py_ssize_t count_free_streams(self)
    @cython.locals(stream=Stream)
    cpdef Stream open(self, list fields, bint end_stream, StreamReceiver receiver)
    @cython.locals(stream=Stream, receiver=StreamReceiver)
    cpdef on_go_away(self, long last_stream_id, long code, bytes debug)
    @cython.locals(live=list)
    cpdef on_lost(self, str reason)
    cpdef _changed(self)

cimport cython

from proxy.connection.protocol cimport RequestAcceptor
from proxy.http2.engine cimport Stream
from proxy.observe.exchange cimport RouteObservers
from proxy.relay.context cimport RouteContext
from proxy.relay.request_content cimport RequestContent
from proxy.relay.signing cimport end_to_end_response, end_to_end_trailers
from proxy.upstream.connection cimport UpstreamConnection

cdef int _ILLEGAL
cdef int _MOVES
cdef int _REQUEST_DATA
cdef int _REQUEST_END
cdef int _START
cdef int _COMMIT
cdef int _RESPONSE_HEAD
cdef int _RESPONSE_DATA
cdef int _RESPONSE_END
cdef int _FORWARD
cdef int _HOLD
cdef int _REPLAYABLE_ENDED
cdef int _OVER
cdef bytes _TABLE
cdef object _OTHER

cdef class ExchangeOwner(RequestAcceptor):
    cdef public Py_ssize_t replay_octets

    cpdef dispatch(self, Exchange exchange)
    cpdef bint may_resend(self, Exchange exchange, bint spent)
    cpdef list response_head(self, Exchange exchange, list fields)
    cpdef error_answered(self, Exchange exchange, bytes content)
    cpdef local_reply(self, Exchange exchange, failure)
    cpdef ended(self, Exchange exchange)

cdef class Exchange(RequestContent):
    cdef ExchangeOwner _owner
    cdef UpstreamConnection _connection
    cdef int _state
    cdef bint _ended
    cdef readonly Py_ssize_t response_octets
    cdef public double head_at
    cdef readonly Stream upstream
    cdef readonly double started_at
    cdef public RouteObservers observers
    cdef public bytes method
    cdef public bytes path
    cdef public RouteContext context
    cdef public tuple upstream_path
    cdef public object kind
    cdef public object token
    cdef public int status
    cdef public str failure_code
    cdef public list error_head
    cdef public object cancel_start

    cpdef begin(self, ExchangeOwner owner, RouteObservers observers, bint end_stream, double started_at)
    @cython.locals(entry=cython.int)
    cpdef int on(self, int move) except -1

    @cython.locals(action=cython.int, octets=cython.Py_ssize_t)
    cpdef on_request_data(self, bytes data, bint end_stream)
    @cython.locals(trailers=list)
    cpdef on_request_trailers(self, list fields)
    @cython.locals(upstream=Stream)
    cpdef on_request_reset(self, long code, bint by_peer)
    @cython.locals(trailers=list, ended=cython.bint, bare=cython.bint, upstream=Stream, data=bytes)
    cpdef start(self, UpstreamConnection connection, list fields)

    cdef _commit_if_large(self)
    @cython.locals(upstream=Stream)
    cdef list _crossing(self, list fields)
    cdef _end(self)
    cdef _stop_waiting(self)

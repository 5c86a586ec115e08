cimport cython

from proxy.connection.budget cimport Account
from proxy.connection.flusher cimport Flusher
from proxy.http2.engine cimport Stream
from proxy.observe.exchange cimport RouteObservers
from proxy.relay.context cimport Destination, RouteContext
from proxy.relay.exchange cimport Exchange, ExchangeOwner
from proxy.relay.signing cimport deployment_lines, end_to_end, method_line, signed_head
from proxy.relay.snapshot cimport Snapshot
from proxy.tokens.slot cimport Slot
from proxy.upstream.connection cimport UpstreamConnection

cdef object _INTERACTIVE
cdef bytes _HTTP_2
cdef int _PSEUDO_FIELDS
cdef int _MOST_REFUSALS
cdef Py_ssize_t _MOST_ADDED_OCTETS

cdef class Dispatcher(ExchangeOwner):
    cdef public bint draining
    cdef readonly Snapshot snapshot
    cdef readonly object waiting
    cdef set _retired
    cdef object _tokens
    cdef object _pool
    cdef object _observers
    cdef RouteObservers _unmatched
    cdef Flusher _flusher
    cdef object _clock
    cdef object _random_fraction
    cdef public bint add_retry_after
    cdef public object verifier
    cdef bytes _name
    cdef tuple _via_http2

    @cython.locals(exchange=Exchange)
    cpdef accept(self, Stream stream, list fields, bint end_stream, Account account)
    @cython.locals(context=RouteContext, slot=Slot, connection=UpstreamConnection)
    cpdef dispatch(self, Exchange exchange)
    @cython.locals(line=tuple, path=tuple, head=list)
    cpdef start(self, Exchange exchange, RouteContext context, UpstreamConnection connection, token)
    cpdef bint may_resend(self, Exchange exchange, bint spent)
    @cython.locals(context=RouteContext)
    cpdef error_answered(self, Exchange exchange, bytes content)
    @cython.locals(status=cython.int, upstream=Stream, context=RouteContext)
    cpdef list response_head(self, Exchange exchange, list fields)
    @cython.locals(context=RouteContext, observers=RouteObservers, seconds=cython.double)
    cpdef ended(self, Exchange exchange)
    @cython.locals(
        stream=Stream,
        method=bytes,
        path=bytes,
        snapshot=Snapshot,
        destination=Destination,
        context=RouteContext,
        head=list,
        version=bytes,
        over_http2=cython.bint,
        is_post=cython.bint,
        is_get=cython.bint,
    )
    cdef RouteContext _find(self, Exchange exchange)
    cdef _verify(self, list head, bytes path)
    cdef list _error_head(self, Exchange exchange, int status, list fields)

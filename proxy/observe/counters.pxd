cimport cython

from proxy.observe.exchange cimport ExchangeObserver

cdef class Durations:
    cdef readonly tuple bounds
    cdef readonly list counts
    cdef public double seconds

    @cython.locals(place=cython.Py_ssize_t, bound=cython.double)
    cpdef observe(self, double seconds)

cdef class Connections:
    cdef readonly Py_ssize_t now
    cdef readonly Py_ssize_t ever

    cpdef opened(self)
    cpdef closed(self)

cdef class RouteMetrics(ExchangeObserver):
    cdef readonly Py_ssize_t in_flight
    cdef readonly Py_ssize_t caller_tokens
    cdef dict _statuses
    cdef object _failures
    cdef object _resets
    cdef readonly Durations durations
    cdef readonly Durations first_octets
    cdef readonly Py_ssize_t successes
    cdef readonly long long request_octets
    cdef readonly long long response_octets

    cpdef started(self, exchange)
    cpdef caller_token_dropped(self, exchange)
    cpdef local_reply(self, exchange, failure)
    cpdef aborted(self, exchange, failure)
    cpdef stream_reset(self, exchange, str by, long code)
    cpdef measured(self, exchange, Py_ssize_t request_octets, Py_ssize_t response_octets, double head_seconds)
    @cython.locals(statuses=dict)
    cpdef ended(self, exchange, int status, double seconds)

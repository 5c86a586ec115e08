cimport cython

from proxy.observe.exchange cimport ExchangeObserver

@cython.final
cdef class Durations:
    cdef readonly tuple bounds
    cdef public double seconds
    cdef list _counts
    cdef double _lower
    cdef double _upper
    cdef Py_ssize_t _place
    cdef Py_ssize_t _repeated

    cpdef observe(self, double seconds)
    @cython.locals(bound=cython.double)
    cdef _enter_bucket(self, double seconds)

@cython.final
cdef class Connections:
    cdef readonly Py_ssize_t now
    cdef readonly Py_ssize_t ever

    cpdef opened(self)
    cpdef closed(self)

cdef class RouteMetrics(ExchangeObserver):
    cdef readonly Py_ssize_t in_flight
    cdef readonly Py_ssize_t caller_tokens
    cdef dict _statuses
    cdef int _status
    cdef Py_ssize_t _repeated
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
    cpdef ended(self, exchange, int status, double seconds)
    cdef dict _all_statuses(self)

cimport cython

cdef class ExchangeObserver:
    cpdef started(self, exchange)
    cpdef caller_token_dropped(self, exchange)
    cpdef token_awaited(self, exchange, double seconds, failure)
    cpdef connection_awaited(self, exchange, double seconds, failure)
    cpdef dispatched(self, exchange)
    cpdef response_head(self, exchange, list fields)
    cpdef error_response(self, exchange, list fields, bytes content)
    cpdef local_reply(self, exchange, failure)
    cpdef aborted(self, exchange, failure)
    cpdef stream_reset(self, exchange, str by, long code)
    cpdef measured(self, exchange, Py_ssize_t request_octets, Py_ssize_t response_octets, double head_seconds)
    cpdef ended(self, exchange, int status, double seconds)

@cython.final
cdef class RouteObservers:
    cdef tuple _started
    cdef tuple _caller_token_dropped
    cdef tuple _token_awaited
    cdef tuple _connection_awaited
    cdef tuple _dispatched
    cdef tuple _response_head
    cdef tuple _error_response
    cdef tuple _local_reply
    cdef tuple _aborted
    cdef tuple _stream_reset
    cdef tuple _measured
    cdef tuple _ended

    @cython.locals(observer=ExchangeObserver)
    cpdef started(self, exchange)
    @cython.locals(observer=ExchangeObserver)
    cpdef caller_token_dropped(self, exchange)
    @cython.locals(observer=ExchangeObserver)
    cpdef token_awaited(self, exchange, double seconds, failure)
    @cython.locals(observer=ExchangeObserver)
    cpdef connection_awaited(self, exchange, double seconds, failure)
    @cython.locals(observer=ExchangeObserver)
    cpdef dispatched(self, exchange)
    @cython.locals(observer=ExchangeObserver)
    cpdef response_head(self, exchange, list fields)
    @cython.locals(observer=ExchangeObserver)
    cpdef error_response(self, exchange, list fields, bytes content)
    @cython.locals(observer=ExchangeObserver)
    cpdef local_reply(self, exchange, failure)
    @cython.locals(observer=ExchangeObserver)
    cpdef aborted(self, exchange, failure)
    @cython.locals(observer=ExchangeObserver)
    cpdef stream_reset(self, exchange, str by, long code)
    @cython.locals(observer=ExchangeObserver)
    cpdef measured(self, exchange, Py_ssize_t request_octets, Py_ssize_t response_octets, double head_seconds)
    @cython.locals(observer=ExchangeObserver)
    cpdef ended(self, exchange, int status, double seconds)

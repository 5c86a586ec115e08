cimport cython

from proxy.connection.budget cimport Account, Budget
from proxy.connection.flusher cimport Flushable, Flusher
from proxy.connection.reads cimport Reads
from proxy.http2.engine cimport Engine, Stream, StreamReceiver

cdef bytearray _READ_BUFFER

cdef class RequestAcceptor:
    cpdef accept(self, Stream stream, list fields, bint end_stream, Account account)

cdef class Http2Protocol(Flushable):
    cdef object __weakref__
    # Public, because tests give it another clock.
    cdef public Reads _reads
    cdef bint _reading_paused
    cdef bint _serve_scheduled
    cdef readonly Engine engine
    cdef readonly Budget budget
    cdef readonly Account account
    cdef readonly object loop
    cdef public object transport
    cdef public object on_refused
    cdef public object on_cut_off
    cdef readonly bint closed
    cdef readonly object gone
    cdef Flusher _flusher
    cdef bint _paused
    cdef Py_ssize_t _counted_octets
    cdef object _abort_timer
    cdef Py_ssize_t _dropped_octets

    cpdef on_stream_lost(self, StreamReceiver receiver, str reason)
    cpdef on_lost(self, str reason)
    cpdef after_turn(self)
    @cython.locals(receiver=StreamReceiver)
    cpdef on_internal_error(self, Stream stream, object exc)
    cpdef bytearray get_buffer(self, Py_ssize_t size_hint)
    cpdef buffer_updated(self, Py_ssize_t octets)
    cdef _serve(self, bytearray buffer, Py_ssize_t octets)
    @cython.locals(engine=Engine)
    cpdef _has_read(self)
    @cython.locals(engine=Engine, data=bytes)
    cpdef flush(self)
    cpdef close(self, str reason)
    cdef _continue_reading(self)
    @cython.locals(stream=Stream, receiver=StreamReceiver)
    cdef _end(self, str reason)
    cpdef Py_ssize_t held_octets(self, Stream stream)
    @cython.locals(queued_octets=Py_ssize_t)
    cdef _count_queued_octets(self)
    cpdef give_credit(self)

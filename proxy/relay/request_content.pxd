cimport cython

from proxy.connection.budget cimport Account
from proxy.http2.engine cimport Stream, StreamReceiver

cdef Py_ssize_t _JOINED_OCTETS
cdef Py_ssize_t _MOST_DISCARDED_OCTETS
cdef Py_ssize_t _SMALL_HEAD_OCTETS
cdef Py_ssize_t _EXCHANGE_OCTETS

cdef class RequestContent(StreamReceiver):
    cdef readonly Stream downstream
    cdef public list fields
    cdef readonly Account account
    cdef Py_ssize_t _head_octets
    cdef bint _holding
    cdef Py_ssize_t _held_octets
    cdef bytes _first_held
    cdef list _more_held
    cdef list _trailers
    cdef readonly Py_ssize_t request_octets
    cdef Py_ssize_t _acknowledged_octets
    cdef Py_ssize_t _discarded_octets
    cdef Py_ssize_t _sent_octets
    cdef readonly int attempts
    cdef public int refusals
    cdef public double refused_at

    cpdef begin_content(self, Stream downstream, list fields, Account account)
    @cython.locals(more=list)
    cpdef hold(self, bytes data)
    cpdef drop_held(self)
    cpdef release(self)
    cpdef bint drop_held_beyond(self, Py_ssize_t most_octets)
    cpdef acknowledge_up_to(self, Py_ssize_t octets)

cimport cython

from proxy.http2.engine cimport Engine

cdef double _TURN_SECONDS
cdef Py_ssize_t _FIRST_SLICE_OCTETS
cdef Py_ssize_t _LEAST_SLICE_OCTETS
cdef Py_ssize_t _MOST_SLICE_OCTETS
cdef Py_ssize_t _QUICK_OCTETS

@cython.final
cdef class Slices:
    cdef readonly Py_ssize_t octets

    cpdef bint adapt(self, Py_ssize_t octets, double seconds)

@cython.final
cdef class Reads:
    cdef Engine _engine
    cdef object _clock
    cdef Slices _slices
    cdef readonly bytearray left

    @cython.locals(began=double)
    cpdef take(self, bytearray buffer, Py_ssize_t octets)
    @cython.locals(left=bytearray, began=double, until=double, now=double, data=bytes)
    cpdef serve(self)

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint32_t

cdef class Outbox:
    cdef PyObject *_held
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _expected
    cdef Py_ssize_t size

    cdef char *room(self, Py_ssize_t octets) except NULL
    cdef int write(self, const void *octets, Py_ssize_t count) except -1
    cdef int write_frame_header(self, Py_ssize_t length, int kind, int flags, int32_t stream_id) except -1
    cdef int write_long(self, uint32_t number) except -1
    cdef char *at(self, Py_ssize_t place) noexcept
    cdef bytes take(self)

cdef void put_frame_header(char *place, Py_ssize_t length, int kind, int flags, int32_t stream_id) noexcept

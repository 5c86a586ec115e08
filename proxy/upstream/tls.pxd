cimport cython

from proxy.connection.protocol cimport Http2Protocol

cdef Py_ssize_t _RECORD_OCTETS
cdef int _HEADER_OCTETS
cdef bytearray _READ_BUFFER

@cython.final
cdef class TlsTransport:
    cdef object __weakref__
    cdef Http2Protocol _protocol
    cdef object _transport
    cdef object _incoming
    cdef object _outgoing
    cdef object _tls
    cdef object _read
    cdef object _write
    cdef Py_ssize_t _records
    cdef int _header_octets
    cdef Py_ssize_t _body_octets
    cdef bytes _delayed
    cdef bint _blocked
    cdef bint _paused
    cdef bint _ended
    cdef bint _peer_ended
    cdef object _failure

    cpdef bint is_closing(self)
    cpdef Py_ssize_t get_write_buffer_size(self)
    cpdef pause_reading(self)
    cpdef resume_reading(self)
    @cython.locals(size=Py_ssize_t, written=Py_ssize_t)
    cpdef write(self, bytes data)
    cpdef write_eof(self)
    cpdef abort(self)
    cpdef bytearray get_buffer(self, Py_ssize_t size_hint)
    cpdef buffer_updated(self, Py_ssize_t octets)
    cpdef data_received(self, bytes data)
    @cython.locals(place=Py_ssize_t, records=Py_ssize_t, passed=Py_ssize_t)
    cdef Py_ssize_t _count_records(self, bytearray data, Py_ssize_t octets) except -1
    @cython.locals(buffer=bytearray, octets=Py_ssize_t)
    cdef _serve(self)
    @cython.locals(room=Py_ssize_t, octets=Py_ssize_t, count=Py_ssize_t)
    cdef Py_ssize_t _decrypt(self, bytearray buffer) except -1
    cdef _go_on_writing(self)

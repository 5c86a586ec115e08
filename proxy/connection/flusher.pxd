cimport cython

from proxy.http2.engine cimport ConnectionHandler

cdef long _TURNS_TO_BE_SURE
cdef Py_ssize_t _SMALL_READ_OCTETS

cdef class Flushable(ConnectionHandler):
    cdef Flushable due_before

    cpdef flush(self)

cdef class Flusher:
    cdef readonly object loop
    cdef Flushable _last_due
    cdef double _now
    cdef bint _scheduled
    cdef bint _reading
    cdef long _reads
    cdef long _single_reads

    cpdef add(self, Flushable connection)
    cpdef double now(self) except -1
    cpdef begin_read(self)
    @cython.locals(turns=long)
    cpdef end_read(self, Py_ssize_t octets)
    cpdef _schedule(self)
    @cython.locals(connection=Flushable, before=Flushable)
    cpdef flush(self)

from proxy.relay.context cimport Destination

cdef class Snapshot:
    cdef readonly object table
    cdef readonly dict contexts
    cdef readonly dict destinations

    cpdef Destination destination(self, bytes path)

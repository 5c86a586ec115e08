cimport cython

cdef int MOST_RESETS
cdef int MOST_CONTROL_FRAMES
cdef Py_ssize_t MOST_LATE_OCTETS
cdef int READ_CREDIT
cdef int HEAD_CREDIT
cdef int CONTENT_CREDIT
cdef int EMPTY_DATA_CHARGE
cdef int SETTINGS_CHARGE

@cython.final
cdef class FloodGuard:
    cdef int _resets
    cdef int _control_frames
    cdef Py_ssize_t _late_octets
    cdef Py_ssize_t _stream_window_octets

    cpdef int credit_read(self) except -1
    cpdef int credit_head(self) except -1
    @cython.locals(credit=Py_ssize_t)
    cpdef int credit_content(self, Py_ssize_t octets, Py_ssize_t frames) except -1
    cpdef int credit_live_content(self, Py_ssize_t octets) except -1
    cpdef int credit_response(self) except -1
    cpdef int charge_reset(self) except -1
    cpdef int charge_control_frame(self) except -1
    cpdef int charge_empty_data(self) except -1
    cpdef int charge_late_content(self, Py_ssize_t octets) except -1
    cpdef int charge_settings(self) except -1
    cdef int _charge(self, int cost) except -1

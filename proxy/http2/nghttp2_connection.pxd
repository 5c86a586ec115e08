from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.stdint cimport int32_t, uint8_t, uint32_t

from proxy.http2.libnghttp2 cimport nghttp2_frame, nghttp2_rcbuf, nghttp2_session
from proxy.http2.nghttp2_frames cimport Frames
from proxy.http2.nghttp2_stream cimport Stream
from proxy.http2.outbox cimport Outbox
from proxy.http2.section_writer cimport SectionWriter

cdef extern from *:
    """
    /* Events are tuples of their own types; calling the type would cost four times as much. */
    static CYTHON_INLINE PyObject *new_event(PyObject *type, Py_ssize_t items) {
        PyObject *event = ((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, items);
    #if PY_VERSION_HEX >= 0x030E0000
        if (event) {
            ((PyTupleObject *)event)->ob_hash = -1;
        }
    #endif
        return event;
    }
    """
    object new_event(object kind, Py_ssize_t items)

cdef inline void put(object event, Py_ssize_t place, object item) noexcept:
    Py_INCREF(item)
    PyTuple_SET_ITEM(event, place, item)

cdef class Connection(Frames):
    cdef nghttp2_session *session
    cdef list events
    cdef dict streams
    cdef Outbox outbox
    cdef SectionWriter writer
    cdef list section
    cdef list turns
    cdef Py_ssize_t queued
    cdef Stream turn
    cdef Py_ssize_t turn_octets
    cdef bint going_away
    cdef bint peer_going_away
    cdef int32_t last_processed
    cdef uint32_t max_streams
    cdef uint32_t peer_max_streams

    cdef object _raised

    cdef Stream stream(self, int32_t stream_id)
    cdef Stream new_stream(self, int32_t stream_id)
    cdef int forget(self, Stream stream) except -1
    cdef int schedule(self, Stream stream) except -1
    cdef int collect(self) except -1
    cdef int fail(self, uint32_t code, str reason) except -1
    cdef int write_go_away(self, uint32_t code, bytes debug) except -1

    cdef int on_data_begins(self, int32_t stream_id, Py_ssize_t length) except -1
    cdef int on_section_begins(self, const nghttp2_frame *frame) except? -1
    cdef int on_line(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1
    cdef int on_content(self, int32_t stream_id, const uint8_t *data, Py_ssize_t count) except -1
    cdef int on_frame(self, const nghttp2_frame *frame) except -1
    cdef int on_closed(self, int32_t stream_id, uint32_t code) except -1
    cdef int on_leaving(self, const uint8_t *header, Py_ssize_t length) except -1

    cdef int _open(self, object limits) except -1
    cdef int _raise_again(self) except -1
    cdef int _write_settings(self, const uint8_t *frame, Py_ssize_t count) except -1
    cdef int _write_section(self, const uint8_t *frame) except -1

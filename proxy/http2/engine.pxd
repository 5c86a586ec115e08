cdef class StreamReceiver:
    cpdef on_request_data(self, bytes data, bint end_stream)
    cpdef on_request_trailers(self, list fields)
    cpdef on_request_reset(self, long code, bint by_peer)
    cpdef on_response_sent(self, Py_ssize_t octets)
    cpdef on_interim(self, list fields)
    cpdef on_response_head(self, list fields, bint end_stream)
    cpdef on_response_data(self, bytes data, bint end_stream)
    cpdef on_response_trailers(self, list fields)
    cpdef on_response_reset(self, long code, bint by_peer)
    cpdef on_request_sent(self, Py_ssize_t octets)
    cpdef on_unprocessed(self, bint spent)
    cpdef on_connection_lost(self, failure)
    cpdef Py_ssize_t count_held_octets(self)
    cpdef object owner(self)
    cpdef on_evicted(self, failure)
    cpdef bint on_internal_error(self)

cdef class Stream:
    cdef public long id
    cdef public StreamReceiver receiver
    cdef public Py_ssize_t owed_octets
    cdef public bytes method
    cdef public bytes path
    cdef public int status
    cdef public str refusal
    cdef public bint has_watched
    cdef public Py_ssize_t head_octets

    cpdef bytes http_version(self)
    cpdef send_head(self, list fields, bint end_stream)
    cpdef send_data(self, bytes data, bint end_stream)
    cpdef send_trailers(self, list fields)
    cpdef reset(self, long code, bint after_data)
    cpdef reset_now(self, long code)
    cpdef Py_ssize_t count_queued_octets(self)
    cpdef acknowledge(self, Py_ssize_t octets)

cdef class ConnectionHandler:
    cdef public bint flush_scheduled

    cpdef schedule_flush(self)
    cpdef on_request(self, Stream stream, list fields, bint end_stream)
    cpdef on_stream_refused(self, long stream_id, str reason)
    cpdef on_settings(self)
    cpdef on_go_away(self, long last_stream_id, long code, bytes debug)
    cpdef on_ping_acknowledged(self, bytes payload)
    cpdef on_failed(self, long code, str reason)
    cpdef on_internal_error(self, Stream stream, object exc)

cdef class Engine:
    cdef public ConnectionHandler handler
    cdef public Py_ssize_t owed_octets
    cdef public Py_ssize_t peer_max_concurrent_streams
    cdef public Py_ssize_t peer_max_section_octets

    cpdef receive(self, bytes data)
    cpdef receive_from(self, bytearray buffer, Py_ssize_t octets)
    cpdef acknowledge_connection(self)
    cpdef Stream open(self, list fields, bint end_stream, StreamReceiver receiver)
    cpdef ping(self, bytes payload)
    cpdef offer_no_streams(self)
    cpdef announce_go_away(self)
    cpdef go_away(self, long code, bytes debug)
    cpdef bytes take(self)
    cpdef report_sent(self)
    cpdef Py_ssize_t count_open_streams(self)
    cpdef Py_ssize_t count_free_streams(self)
    cpdef Py_ssize_t count_queued_octets(self)
    cpdef Py_ssize_t count_frame_octets(self)
    cpdef long unfinished_block(self)
    cpdef bint wants_to_send(self)
    cpdef list live_streams(self)

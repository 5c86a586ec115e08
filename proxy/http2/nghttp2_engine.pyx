"""Engine on libnghttp2: the commands, and whose turn it is.

`nghttp2_connection` says what is asked of the library and what is not. The library's queue is empty between any two
calls: what a command makes it queue is collected at once, in order, so that its states are always current. Content is
the exception. It waits here, a queue a stream, and `take` gives the library one frame at a time:

* streams take turns, a frame each, as far as the windows go (the library, without the priorities of RFC 7540, would let
  the first stream of a client send all it has);
* a frame is as full as windows and the peer allow, and carries the end where the end is known; an end by itself needs
  no window, for which the library has no frame but HEADERS: see `Connection._write_section`;
* content is copied once, from the bytes it came in to the bytes that leave.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from proxy.http2.libnghttp2 cimport *
from proxy.http2.nghttp2_connection cimport Connection, new_event, put
from proxy.http2.nghttp2_frames cimport END_STREAM, INTERNAL_ERROR, MAX_STREAM_ID
from proxy.http2.nghttp2_receiver cimport Receiver
from proxy.http2.nghttp2_stream cimport Stream

from proxy.http2.events import Sent
from proxy.http2.framing import ConnectionFault

LIBRARY = f"libnghttp2 {nghttp2_version(0).version_str.decode()}"
"""Name and version of what is underneath, for the log."""

cdef enum:
    # A greater frame saves nothing, and the library keeps room for the greatest that it ever sent.
    _MOST_FRAME_OCTETS = 256 << 10


@cython.final
@cython.no_gc
cdef class Nghttp2Engine(Receiver):
    """One side of one connection on libnghttp2; the contract is `Engine`."""

    name = "nghttp2"

    cdef list _doomed

    # ---- receiving

    def acknowledge(self, stream_id, Py_ssize_t octets):
        cdef Stream stream = self._get(stream_id)
        if stream is not None and not stream.ended_by_peer and octets > 0:
            nghttp2_session_consume_stream(self.session, stream.id, <size_t>octets)
            self._settle()

    def acknowledge_connection(self, Py_ssize_t octets):
        if self.session != NULL and octets > 0:
            nghttp2_session_consume_connection(self.session, <size_t>octets)
            self._settle()

    # ---- sending

    def send_request(self, list fields not None, bint end_stream):
        cdef Stream stream
        if not self._free_streams():
            raise RuntimeError("no stream can be opened now: ask free_streams first")
        self.writer.check(fields)
        stream = self.new_stream(<int32_t>nghttp2_session_get_next_stream_id(self.session))
        self.opened(stream.id)
        stream.to_head = _is_to_head(fields)
        stream.has_sent_head = True
        self._submit_section(stream, -1, fields, end_stream)
        return stream.key

    def send_head(self, stream_id, list fields not None, bint end_stream):
        cdef Stream stream = self._sending(stream_id)
        if stream is None:
            return
        self.writer.check(fields)
        if stream.has_sent_head:
            raise RuntimeError(f"the head of stream {stream_id} was sent before")
        if not fields[0][1].startswith(b"1"):
            stream.has_sent_head = True
            self.earn_by_answer()
        self._submit_section(stream, stream.id, fields, end_stream)

    def send_data(self, stream_id, bytes data not None, bint end_stream):
        cdef Stream stream = self._sending_content(stream_id)
        if stream is None:
            return
        if PyBytes_GET_SIZE(data):
            stream.push(data)
            self.queued += PyBytes_GET_SIZE(data)
            self.schedule(stream)
        if end_stream:
            self._end(stream)

    def send_trailers(self, stream_id, list fields not None):
        cdef Stream stream = self._sending_content(stream_id)
        if stream is None:
            return
        if PyList_GET_SIZE(fields):
            self.writer.check(fields)
            stream.trailers = fields[:]
        self._end(stream)

    def reset(self, stream_id, uint32_t code, *, bint after_data=False):
        cdef Stream stream = self._get(stream_id)
        if stream is None:
            return
        if not stream.muted or not after_data:
            stream.reset_code = code
        stream.muted = True
        if not stream.octets:
            self._reset(stream)
        elif not after_data:
            if self._doomed is None:
                self._doomed = []
            self._doomed.append(stream)

    def ping(self, bytes payload not None):
        if PyBytes_GET_SIZE(payload) != 8:
            raise ValueError("a PING has eight octets")
        if self.session != NULL:
            self.pings += 1
            nghttp2_submit_ping(self.session, NGHTTP2_FLAG_NONE, <const uint8_t *>PyBytes_AS_STRING(payload))
            self._settle()

    def go_away(self, uint32_t code, bytes debug=b""):
        if self.session != NULL:
            self.write_go_away(code, debug)

    def take(self):
        cdef list sent = []
        if self.session != NULL:
            if PyList_GET_SIZE(self.turns):
                self._take_turns(sent)
            if self._doomed is not None:
                self._cut_short()
        self.unsent_acks = 0
        return self.outbox.take(), sent

    cdef int _take_turns(self, list sent) except -1:
        """Have all content leave that the windows take, a frame a turn; say in `sent` whose it was."""
        cdef Py_ssize_t window = nghttp2_session_get_remote_window_size(self.session)
        cdef Py_ssize_t most = nghttp2_session_get_remote_settings(self.session, NGHTTP2_SETTINGS_MAX_FRAME_SIZE)
        cdef Py_ssize_t place, octets, room, total = 0
        cdef list senders = [], turns
        cdef Stream stream
        most = min(most, _MOST_FRAME_OCTETS)
        while window > 0 and PyList_GET_SIZE(self.turns):
            turns, self.turns = self.turns, []
            for place in range(PyList_GET_SIZE(turns)):
                if window <= 0:
                    self.turns = turns[place:] + self.turns
                    break
                stream = <Stream>turns[place]
                stream.scheduled = False
                if stream.gone:
                    continue
                room = nghttp2_session_get_stream_remote_window_size(self.session, stream.id)
                octets = min(stream.octets, room, window, most)
                if octets <= 0:
                    continue
                if not stream.leaving:
                    senders.append(stream)
                stream.leaving += octets
                total += octets
                window -= octets
                self._send_frame(stream, octets)
                if room > octets:
                    self.schedule(stream)
        for stream in senders:
            sent.append(_sent(stream))
        if total:
            self.earn_by_content(total, PyList_GET_SIZE(senders))
        return 0

    cdef int _send_frame(self, Stream stream, Py_ssize_t octets) except -1:
        """Have the library send a frame of content, and what comes behind it if it is the last."""
        cdef bint last = octets == stream.octets
        cdef bint ends = last and stream.ended and stream.trailers is None
        self.turn = stream
        self.turn_octets = octets
        if nghttp2_submit_data(self.session, END_STREAM if ends else 0, stream.id, &_CONTENT) == 0:
            self._settle()
        if self.turn is not None:
            self.turn = None
            return self.fail(INTERNAL_ERROR, "a defect of the engine: content that cannot be sent")
        if ends:
            stream.ended = False
            stream.end_sent = True
        if last and not stream.gone:
            if stream.ended:
                self._finish(stream)
            if stream.reset_code >= 0:
                self._reset(stream)
        return 0

    cdef int _cut_short(self) except -1:
        """Send the resets that wait for no more than this `take`."""
        cdef list doomed = self._doomed
        cdef Stream stream
        self._doomed = None
        for stream in doomed:
            if not stream.gone:
                self._reset(stream)
        return 0

    # ---- questions

    @property
    def peer_max_concurrent_streams(self):
        return self.peer_max_streams

    @property
    def open_streams(self):
        return len(self.streams)

    @property
    def free_streams(self):
        return self._free_streams()

    @property
    def queued_octets(self):
        return self.queued

    @property
    def wants_to_send(self):
        if self.outbox.size or self._doomed is not None:
            return True
        if self.session == NULL or not PyList_GET_SIZE(self.turns):
            return False
        return nghttp2_session_get_remote_window_size(self.session) > 0

    # ---- inside

    cdef int64_t _free_streams(self) except -1:
        cdef int64_t ids, streams
        if not self.client or self.session == NULL or self.going_away or self.peer_going_away:
            return 0
        ids = (<int64_t>MAX_STREAM_ID - nghttp2_session_get_next_stream_id(self.session)) // 2 + 1
        streams = <int64_t>self.peer_max_streams - len(self.streams)
        return max(0, min(streams, ids))

    cdef Stream _get(self, object stream_id):
        cdef PyObject *found = PyDict_GetItemWithError(self.streams, stream_id)
        return None if found == NULL else <Stream>found

    cdef Stream _sending(self, object stream_id):
        """Return the stream if anything can be queued on it; None if it is gone, finished or being reset."""
        cdef Stream stream = self._get(stream_id)
        if stream is None or stream.muted or stream.ended or stream.end_sent:
            return None
        return stream

    cdef Stream _sending_content(self, object stream_id):
        cdef Stream stream = self._sending(stream_id)
        if stream is not None and not stream.has_sent_head:
            raise RuntimeError(f"nothing can be sent on stream {stream_id} before its head")
        return stream

    cdef int _submit_section(self, Stream stream, int32_t stream_id, list fields, bint end) except -1:
        """Have the library send HEADERS, which stand for this section (see `Connection._write_section`)."""
        stream.end_sent = end
        self.section = fields
        if nghttp2_submit_headers(
            self.session, END_STREAM if end else 0, stream_id, NULL, NULL, 0, <void *>stream
        ) < 0:
            raise MemoryError
        return self._settle()

    cdef int _end(self, Stream stream) except -1:
        """End our half of the stream behind what is queued."""
        stream.ended = True
        return 0 if stream.octets else self._finish(stream)

    cdef int _finish(self, Stream stream) except -1:
        """Send the end, alone or as trailers."""
        cdef list trailers = stream.trailers
        stream.ended = False
        stream.trailers = None
        return self._submit_section(stream, stream.id, trailers, True)

    cdef int _reset(self, Stream stream) except -1:
        nghttp2_submit_rst_stream(self.session, NGHTTP2_FLAG_NONE, stream.id, <uint32_t>stream.reset_code)
        self.forget(stream)
        return self._settle()

    cdef int _settle(self) except -1:
        """Collect what the library has queued. A fault here is a defect of ours; the next `receive` reports it."""
        try:
            return self.collect()
        except ConnectionFault as exc:
            return self.fail(exc.code, exc.reason)
        except Exception as exc:
            return self.fail(INTERNAL_ERROR, f"a defect of the engine: {type(exc).__name__}")


cdef bint _is_to_head(list fields) except -1:
    """Whether the request asks for no content; its pseudo-fields stand first."""
    cdef Py_ssize_t place
    cdef tuple field
    for place in range(min(PyList_GET_SIZE(fields), 4)):
        field = <tuple>PyList_GET_ITEM(fields, place)
        if <bytes>PyTuple_GET_ITEM(field, 0) == b":method":
            return <bytes>PyTuple_GET_ITEM(field, 1) == b"HEAD"
    return False


cdef object _sent(Stream stream):
    cdef object sent = new_event(Sent, 2)
    put(sent, 0, stream.key)
    put(sent, 1, stream.leaving)
    stream.leaving = 0
    return sent


cdef ssize_t _read_content(
    nghttp2_session *session,
    int32_t stream_id,
    uint8_t *place,
    size_t most,
    uint32_t *flags,
    nghttp2_data_source *source,
    void *connection,
) noexcept:
    """Promise a frame of content; `Connection.on_leaving` delivers it."""
    cdef Connection self = <Connection>connection
    if self.turn is None or <size_t>self.turn_octets > most:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    flags[0] = NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_COPY
    return self.turn_octets


cdef nghttp2_data_provider _CONTENT
_CONTENT.source.ptr = NULL
_CONTENT.read_callback = _read_content

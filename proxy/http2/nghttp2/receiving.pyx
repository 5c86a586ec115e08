"""What the library reports of the frames that it has read and acted upon, and what receivers are told of it.

The rules are those of the portable engine, except that the library ends the connection, not just the stream, over
content before a response head and (1.70 does, 1.64 does not) over content beyond the stream's window, as `Engine` allows.

An engine's own state is complete before a receiver is told, because the receiver may command any stream at once. A
receiver is held by a variable while it is told: it may let go of its stream, which may have the only other reference.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from proxy.http2.engine cimport StreamReceiver
from proxy.http2.nghttp2.engine cimport Nghttp2Engine
from proxy.http2.nghttp2.frames cimport *
from proxy.http2.nghttp2.libnghttp2 cimport *
from proxy.http2.nghttp2.section_reader cimport REQUEST, RESPONSE, TRAILERS, SectionReader
from proxy.http2.nghttp2.stream cimport Nghttp2Stream

from proxy.http2.policy.faults import ConnectionFault
from proxy.http2.policy import refusals
from proxy.http2.policy.fields import Malformed, check_request, check_response, check_trailers


# ---- sections


cdef int _on_section_begins(Nghttp2Engine engine, const nghttp2_frame *frame) except -1:
    """The lines of a section follow, unless the return value is not 0."""
    cdef Nghttp2Stream stream = engine.find(frame.hd.stream_id)
    if stream is not None:
        engine.reader.begin(RESPONSE if engine.client and not stream.has_head else TRAILERS)
    elif engine.client or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    elif engine.going_away or engine.open_streams >= engine.max_streams:
        _refuse(
            engine,
            frame.hd.stream_id,
            REFUSED_STREAM,
            refusals.GOING_AWAY if engine.going_away else refusals.TOO_MANY_STREAMS,
        )
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    else:
        engine.reader.begin(REQUEST)
    return 0


cdef int _on_section(Nghttp2Engine engine, int32_t stream_id, bint end) except -1:
    cdef Nghttp2Stream stream = engine.find(stream_id)
    cdef SectionReader reader = engine.reader
    cdef StreamReceiver receiver
    cdef list fields = reader.end(stream is not None and stream.to_head)
    if stream is None:
        return _on_request(engine, stream_id, fields, end)
    if reader.too_great:
        return _fault(engine, stream, ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
    if reader.malformed:
        return _fault(engine, stream, PROTOCOL_ERROR, _reason(stream, fields, end))
    if stream.has_head:
        return _on_trailers(engine, stream, fields, end)
    if end and (reader.interim or reader.content_length > 0):
        return _fault(
            engine, stream, PROTOCOL_ERROR, refusals.STREAM_ORDER if reader.interim else refusals.CONTENT_LENGTH
        )
    receiver = stream.receiver
    if reader.interim:
        stream.has_watched = reader.has_watched
        if receiver is not None and not stream.muted:
            engine.told = stream
            engine.told_receiver = receiver
            receiver.on_interim(fields)
            engine.told = engine.told_receiver = None
        return 0
    stream.missing = reader.content_length
    stream.has_head = True
    stream.ended_by_peer = end
    stream.status = reader.status
    stream.has_watched = reader.has_watched
    engine.frames.credit_head()
    engine.frames.credit_response()
    if receiver is not None and not stream.muted:
        engine.told = stream
        engine.told_receiver = receiver
        receiver.on_response_head(fields, end)
        engine.told = engine.told_receiver = None
    return 0


cdef int _on_trailers(Nghttp2Engine engine, Nghttp2Stream stream, list fields, bint end) except -1:
    cdef StreamReceiver receiver = stream.receiver
    if not end or stream.missing > 0:
        return _fault(engine, stream, PROTOCOL_ERROR, refusals.CONTENT_LENGTH if end else refusals.STREAM_ORDER)
    stream.ended_by_peer = True
    if receiver is not None and not stream.muted:
        engine.told = stream
        engine.told_receiver = receiver
        if engine.client:
            receiver.on_response_trailers(fields)
        else:
            receiver.on_request_trailers(fields)
        engine.told = engine.told_receiver = None
    return 0


cdef int _on_request(Nghttp2Engine engine, int32_t stream_id, list fields, bint end) except -1:
    cdef Nghttp2Stream stream
    if engine.going_away:
        # GOAWAY was written while the block was coming in, and named a stream before this one.
        return _refuse(engine, stream_id, REFUSED_STREAM, refusals.GOING_AWAY)
    if engine.reader.too_great:
        return _refuse(engine, stream_id, ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
    if engine.reader.malformed or (end and engine.reader.content_length > 0):
        return _refuse(engine, stream_id, PROTOCOL_ERROR, _reason(None, fields, end))
    stream = engine.new_stream(stream_id)
    nghttp2_session_set_stream_user_data(engine.session.handle, stream_id, <void *>stream)
    stream.missing = engine.reader.content_length
    stream.has_head = True
    stream.ended_by_peer = end
    stream.method = engine.reader.method()
    stream.path = engine.reader.path()
    stream.has_watched = engine.reader.has_watched
    engine.last_processed = stream_id
    engine.frames.credit_head()
    engine.told = stream
    engine.handler.on_request(stream, fields, end)
    engine.told = engine.told_receiver = None
    return 0


cdef str _reason(Nghttp2Stream stream, list fields, bint ends):
    """Return the word for the rule that a malformed section breaks; without a stream it is a request."""
    try:
        if stream is None:
            check_request(fields, ends=ends)
        elif stream.has_head:
            check_trailers(fields, ends=ends)
        else:
            check_response(fields, to_head=stream.to_head, ends=ends)
    except Malformed as exc:
        return exc.reason
    return refusals.FIELD


# ---- content


cdef int _on_data_begins(Nghttp2Engine engine, int32_t stream_id, Py_ssize_t length) except -1:
    """DATA of this length is about to be read: is there room for it, and is content in its place?"""
    cdef Nghttp2Stream stream = engine.find(stream_id)
    if stream is None:
        return 0
    if not stream.has_head:
        return _fault(engine, stream, PROTOCOL_ERROR, refusals.STREAM_ORDER)
    if length > nghttp2_session_get_stream_local_window_size(engine.session.handle, stream_id):
        if length <= nghttp2_session_get_local_window_size(engine.session.handle):
            return _fault(engine, stream, FLOW_CONTROL_ERROR, refusals.FLOW_CONTROL)
    return 0


cdef int _on_content(Nghttp2Engine engine, int32_t stream_id, const uint8_t *data, Py_ssize_t count) except -1:
    """The content of a DATA frame; `_on_data` follows."""
    if nghttp2_session_get_stream_user_data(engine.session.handle, stream_id) == NULL:
        nghttp2_session_consume_connection(engine.session.handle, <size_t>count)
    else:
        engine.content = PyBytes_FromStringAndSize(<const char *>data, count)
    return 0


cdef int _on_data(Nghttp2Engine engine, int32_t stream_id, bint end) except -1:
    cdef Nghttp2Stream stream = engine.find(stream_id)
    cdef StreamReceiver receiver
    cdef bytes content = engine.content
    cdef Py_ssize_t count = 0
    engine.content = None
    if stream is None:
        return 0
    if content is not None:
        count = PyBytes_GET_SIZE(content)
        engine.frames.credit_content(count, 1)
    if stream.missing >= 0:
        stream.missing -= count
        if stream.missing < 0 or (end and stream.missing):
            nghttp2_session_consume_connection(engine.session.handle, <size_t>count)
            return _fault(engine, stream, PROTOCOL_ERROR, refusals.CONTENT_LENGTH)
    stream.ended_by_peer = end
    if stream.muted:
        nghttp2_session_consume_connection(engine.session.handle, <size_t>count)
    elif count or end:
        engine.owed_octets += count
        receiver = stream.receiver
        if receiver is None:
            if count and not end:
                nghttp2_session_consume_stream(engine.session.handle, stream_id, <size_t>count)
            return 0
        stream.owed_octets += count
        engine.told = stream
        engine.told_receiver = receiver
        if engine.client:
            receiver.on_response_data(content if count else b"", end)
        else:
            receiver.on_request_data(content if count else b"", end)
        engine.told = engine.told_receiver = None
    return 0


cdef int _on_leaving(Nghttp2Engine engine, const uint8_t *header, Py_ssize_t length) except -1:
    """DATA of the stream whose turn it is leaves."""
    cdef char *place = engine.session.outbox.room(FRAME_HEADER_OCTETS + length)
    memcpy(place, header, FRAME_HEADER_OCTETS)
    engine.queued -= length
    engine.turn.pull(place + FRAME_HEADER_OCTETS, length)
    engine.turn = None
    return 0


# ---- ends


cdef int _fault(Nghttp2Engine engine, Nghttp2Stream stream, uint32_t code, str reason) except -1:
    """Reset a stream on which the peer broke a rule."""
    engine.handler.on_stream_refused(stream.id, reason)
    nghttp2_submit_rst_stream(engine.session.handle, NGHTTP2_FLAG_NONE, <int32_t>stream.id, code)
    engine.forget(stream)
    _tell_reset(engine, stream, code, False)
    return engine.frames.charge_reset()


cdef int _refuse(Nghttp2Engine engine, int32_t stream_id, uint32_t code, str reason) except -1:
    """Reset a stream that nobody has heard of."""
    engine.handler.on_stream_refused(stream_id, reason)
    nghttp2_submit_rst_stream(engine.session.handle, NGHTTP2_FLAG_NONE, stream_id, code)
    return engine.frames.charge_reset()


cdef int _tell_reset(Nghttp2Engine engine, Nghttp2Stream stream, uint32_t code, bint by_peer) except -1:
    cdef StreamReceiver receiver = stream.receiver
    if receiver is not None and (by_peer or not stream.muted):
        engine.told = stream
        engine.told_receiver = receiver
        if engine.client:
            receiver.on_response_reset(code, by_peer)
        else:
            receiver.on_request_reset(code, by_peer)
        engine.told = engine.told_receiver = None
    return 0


cdef int _on_reset(Nghttp2Engine engine, int32_t stream_id, uint32_t code) except -1:
    cdef Nghttp2Stream stream = engine.find(stream_id)
    if stream is None:
        return engine.frames.charge(1)
    engine.forget(stream)
    _tell_reset(engine, stream, code, True)
    return 0 if stream.has_sent_head else engine.frames.charge_reset()


cdef int _on_closed(Nghttp2Engine engine, int32_t stream_id, uint32_t code) except -1:
    """The library has done with a stream. Where nobody else has reset it, its send window was pushed too far."""
    cdef Nghttp2Stream stream = engine.find(stream_id)
    if stream is None:
        return 0
    engine.forget(stream)
    if code == FLOW_CONTROL_ERROR:
        raise ConnectionFault(code, "a stream's window is pushed past 2^31-1")
    return 0


# ---- the connection


cdef int _on_settings(Nghttp2Engine engine, const nghttp2_frame *frame) except -1:
    cdef size_t place
    cdef Nghttp2Stream stream
    for place in range(frame.settings.niv):
        if frame.settings.iv[place].settings_id == NGHTTP2_SETTINGS_HEADER_TABLE_SIZE:
            engine.session.writer.resize(frame.settings.iv[place].value)
    engine.peer_max_streams = nghttp2_session_get_remote_settings(
        engine.session.handle, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    )
    for stream in engine.live_streams():
        engine.schedule(stream)
    engine.handler.on_settings()
    return 0


cdef int take_frame(Nghttp2Engine engine, const uint8_t *frame, Py_ssize_t count) except -1:
    """Do what the contract says about a frame that the library does not get to see."""
    cdef uint8_t kind = frame[3]
    cdef uint32_t stream_id = stream_of(frame)
    cdef Py_ssize_t length = count - FRAME_HEADER_OCTETS
    if kind == PRIORITY:
        if not stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "PRIORITY on stream 0")
        if length != 5:
            raise ConnectionFault(FRAME_SIZE_ERROR, "PRIORITY is not five octets")
    elif kind == WINDOW_UPDATE:
        return _on_suspicious_update(engine, frame)
    elif kind == GOAWAY:
        if stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "GOAWAY on a stream")
        if length < 8:
            raise ConnectionFault(FRAME_SIZE_ERROR, "GOAWAY is shorter than eight octets")
        engine.peer_going_away = True
        debug = PyBytes_FromStringAndSize(<const char *>frame + 17, length - 8)
        engine.handler.on_go_away(number_at(frame + 9) & MAX_STREAM_ID, number_at(frame + 13), debug)
    return 0


cdef int _on_suspicious_update(Nghttp2Engine engine, const uint8_t *frame) except -1:
    """An update of a stream's window, by nothing or by very much."""
    cdef Nghttp2Stream stream = engine.find(stream_of(frame))
    cdef uint32_t increment = number_at(frame + FRAME_HEADER_OCTETS) & MAX_STREAM_ID
    cdef int32_t window
    if stream is not None:
        window = nghttp2_session_get_stream_remote_window_size(engine.session.handle, <int32_t>stream.id)
        if not increment or <uint32_t>window > MAX_STREAM_ID - increment:
            try:
                return _fault(
                    engine, stream, FLOW_CONTROL_ERROR if increment else PROTOCOL_ERROR, refusals.FLOW_CONTROL
                )
            except ConnectionFault:
                raise
            except Exception as exc:
                _raised(engine, exc)
                return engine.session.raise_kept()
    return engine.session.feed(frame, FRAME_HEADER_OCTETS + 4)


# ---- callbacks


cdef int _on_frame(Nghttp2Engine engine, const nghttp2_frame *frame) except -1:
    """A frame is complete, and the library has acted upon it."""
    cdef int kind = frame.hd.type
    cdef bint end = frame.hd.flags & END_STREAM != 0
    cdef Nghttp2Stream stream
    if kind == DATA:
        return _on_data(engine, frame.hd.stream_id, end)
    if kind == HEADERS:
        return _on_section(engine, frame.hd.stream_id, end)
    if kind == WINDOW_UPDATE:
        stream = engine.find(frame.hd.stream_id) if frame.hd.stream_id else None
        if stream is not None:
            engine.schedule(stream)
    elif kind == RST_STREAM:
        return _on_reset(engine, frame.hd.stream_id, frame.rst_stream.error_code)
    elif kind == SETTINGS and not frame.hd.flags & ACK:
        return _on_settings(engine, frame)
    elif kind == PING and frame.hd.flags & ACK:
        engine.handler.on_ping_acknowledged(frame.ping.opaque_data[:8])
    return 0


cdef int _raised(Nghttp2Engine engine, exc) noexcept:
    """Have the handler know of what a receiver has raised; keep anything else for whoever called the library."""
    cdef Nghttp2Stream stream = engine.told
    if stream is not None:
        if stream.receiver is None:
            stream.receiver = engine.told_receiver  # it may have let go of the stream before it raised
        engine.told = engine.told_receiver = None
        try:
            engine.handler.on_internal_error(stream, exc)
            return 0
        except Exception as again:
            exc = again
    engine.session.raised = exc
    return NGHTTP2_ERR_CALLBACK_FAILURE


# What a callback calls raises by returning -1, and is called as if it did not, so that a `try` costs nothing where nothing
# is raised.
ctypedef int (*on_data_begins)(Nghttp2Engine, int32_t, Py_ssize_t) noexcept
ctypedef int (*on_frame)(Nghttp2Engine, const nghttp2_frame *) noexcept
ctypedef int (*on_content)(Nghttp2Engine, int32_t, const uint8_t *, Py_ssize_t) noexcept
ctypedef int (*on_closed)(Nghttp2Engine, int32_t, uint32_t) noexcept
ctypedef int (*on_leaving)(Nghttp2Engine, const uint8_t *, Py_ssize_t) noexcept


cdef int _is_raised() except -1:
    return -1


cdef int _caught(Nghttp2Engine engine) noexcept:
    try:
        return _is_raised()
    except Exception as exc:
        return _raised(engine, exc)


cdef int _begin_frame_callback(nghttp2_session *session, const nghttp2_frame_hd *header, void *engine) noexcept:
    cdef int rv
    if header.type != DATA:
        return 0
    rv = (<on_data_begins>_on_data_begins)(<Nghttp2Engine>engine, header.stream_id, <Py_ssize_t>header.length)
    return _caught(<Nghttp2Engine>engine) if rv == -1 else rv


cdef int _begin_headers_callback(nghttp2_session *session, const nghttp2_frame *frame, void *engine) noexcept:
    cdef int rv = (<on_frame>_on_section_begins)(<Nghttp2Engine>engine, frame)
    return _caught(<Nghttp2Engine>engine) if rv == -1 else rv


cdef int _header_callback(
    nghttp2_session *session,
    const nghttp2_frame *frame,
    nghttp2_rcbuf *name,
    nghttp2_rcbuf *value,
    uint8_t flags,
    void *engine,
) noexcept:
    cdef SectionReader reader = (<Nghttp2Engine>engine).reader
    if reader.add_kept(name, value, flags & NGHTTP2_NV_FLAG_NO_INDEX != 0):
        return 0
    try:
        reader.add(name, value, flags & NGHTTP2_NV_FLAG_NO_INDEX != 0)
        if reader.far_too_great:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "a field section far over SETTINGS_MAX_HEADER_LIST_SIZE")
        return 0
    except Exception as exc:
        return _raised(<Nghttp2Engine>engine, exc)


cdef int _data_chunk_callback(
    nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t count, void *engine
) noexcept:
    cdef int rv = (<on_content>_on_content)(<Nghttp2Engine>engine, stream_id, data, <Py_ssize_t>count)
    return _caught(<Nghttp2Engine>engine) if rv == -1 else rv


cdef int _frame_callback(nghttp2_session *session, const nghttp2_frame *frame, void *engine) noexcept:
    cdef int rv = (<on_frame>_on_frame)(<Nghttp2Engine>engine, frame)
    return _caught(<Nghttp2Engine>engine) if rv == -1 else rv


cdef int _stream_close_callback(nghttp2_session *session, int32_t stream_id, uint32_t code, void *engine) noexcept:
    cdef int rv = (<on_closed>_on_closed)(<Nghttp2Engine>engine, stream_id, code)
    return _caught(<Nghttp2Engine>engine) if rv == -1 else rv


cdef int _send_data_callback(
    nghttp2_session *session,
    nghttp2_frame *frame,
    const uint8_t *header,
    size_t length,
    nghttp2_data_source *source,
    void *engine,
) noexcept:
    cdef int rv = (<on_leaving>_on_leaving)(<Nghttp2Engine>engine, header, <Py_ssize_t>length)
    return _caught(<Nghttp2Engine>engine) if rv == -1 else rv


cdef ssize_t _read_length_callback(
    nghttp2_session *session,
    uint8_t kind,
    int32_t stream_id,
    int32_t connection_window,
    int32_t stream_window,
    uint32_t max_frame,
    void *engine,
) noexcept:
    return (<Nghttp2Engine>engine).turn_octets


cdef nghttp2_session_callbacks *_CALLBACKS = NULL
if nghttp2_session_callbacks_new(&_CALLBACKS) != 0:
    raise MemoryError
nghttp2_session_callbacks_set_on_begin_frame_callback(_CALLBACKS, _begin_frame_callback)
nghttp2_session_callbacks_set_on_begin_headers_callback(_CALLBACKS, _begin_headers_callback)
nghttp2_session_callbacks_set_on_header_callback2(_CALLBACKS, _header_callback)
nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_CALLBACKS, _data_chunk_callback)
nghttp2_session_callbacks_set_on_frame_recv_callback(_CALLBACKS, _frame_callback)
nghttp2_session_callbacks_set_on_stream_close_callback(_CALLBACKS, _stream_close_callback)
nghttp2_session_callbacks_set_send_data_callback(_CALLBACKS, _send_data_callback)
nghttp2_session_callbacks_set_data_source_read_length_callback(_CALLBACKS, _read_length_callback)


cdef nghttp2_session_callbacks *callbacks() noexcept:
    """Return the library's callbacks, whose owner is an Nghttp2Engine."""
    return _CALLBACKS

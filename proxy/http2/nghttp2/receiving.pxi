"""What the library reports of the frames that it has read, and what receivers are told of them.

The library ends the connection, not the stream, over content before a response head and (1.70 does, 1.64 does not) over
content beyond the stream's window.

An engine's own state is complete before a receiver is told, because the receiver may command any stream at once.
"""

cdef enum:  # what `tell` tells
    ON_REQUEST
    ON_RESPONSE
    ON_INTERIM
    ON_DATA
    ON_TRAILERS
    ON_RESET
    ON_SENT


cdef inline Nghttp2Stream _find(Nghttp2Engine engine, int32_t stream_id):
    """Return the stream, or None if it is over, or was never reported. Several calls for the same one follow."""
    cdef void *stream
    if engine.found is None or engine.found.id != stream_id:
        stream = nghttp2_session_get_stream_user_data(engine.session.handle, stream_id)
        if stream == NULL:
            return None
        engine.found = <Nghttp2Stream>stream
    return engine.found


# ---- receivers


cdef int tell(
    Nghttp2Engine engine, Nghttp2Stream stream, int event, object content, bint flag, long number
) except -1:
    """Tell the stream's receiver, if it has one; an exception goes to the handler, and the other streams go on.

    `content` is fields or octets; `flag`: they end the peer's half, or the peer has sent the reset; `number`: the error
    code, or the octets that were sent.
    """
    # The receiver may let go of its stream, which may have the only other reference.
    cdef StreamReceiver receiver = stream.receiver
    if receiver is None and event != ON_REQUEST:
        return 0
    if (<unchecked>_call)(engine, stream, receiver, event, content, flag, number) == -1:
        # Called like this, because a `try` costs something even where nothing is raised.
        try:
            raise_pending()
        except Exception as exc:
            if stream.receiver is None:
                stream.receiver = receiver
            engine.handler.on_internal_error(stream, exc)
    return 0


ctypedef int (*unchecked)(Nghttp2Engine, Nghttp2Stream, StreamReceiver, int, object, bint, long) noexcept


cdef int _call(
    Nghttp2Engine engine,
    Nghttp2Stream stream,
    StreamReceiver receiver,
    int event,
    object content,
    bint flag,
    long number,
) except -1:
    if event == ON_SENT:
        if engine.client:
            receiver.on_request_sent(number)
        else:
            receiver.on_response_sent(number)
    elif event == ON_REQUEST:
        engine.handler.on_request(stream, <list>content, flag)
    elif event == ON_RESPONSE:
        receiver.on_response_head(<list>content, flag)
    elif event == ON_INTERIM:
        receiver.on_interim(<list>content)
    elif event == ON_DATA:
        if engine.client:
            receiver.on_response_data(<bytes>content, flag)
        else:
            receiver.on_request_data(<bytes>content, flag)
    elif event == ON_TRAILERS:
        if engine.client:
            receiver.on_response_trailers(<list>content)
        else:
            receiver.on_request_trailers(<list>content)
    elif engine.client:
        receiver.on_response_reset(number, flag)
    else:
        receiver.on_request_reset(number, flag)
    return 0


# ---- sections


cdef int _on_section_begins(nghttp2_session *session, const nghttp2_frame *frame, void *owner) except FAILED:
    """The lines of a section follow, unless the return value is not 0."""
    cdef Nghttp2Engine engine = <Nghttp2Engine>owner
    cdef Nghttp2Stream stream = _find(engine, frame.hd.stream_id)
    if stream is not None:
        engine.reader.begin(RESPONSE if engine.client and not stream.has_head else TRAILERS)
    elif engine.client or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    elif engine.going_away or engine.open_streams >= engine.max_streams:
        reason = refusals.GOING_AWAY if engine.going_away else refusals.TOO_MANY_STREAMS
        _reset_over(engine, frame.hd.stream_id, REFUSED_STREAM, reason)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    else:
        engine.reader.begin(REQUEST)
    return 0


cdef int _on_line(
    nghttp2_session *session, const nghttp2_frame *frame,
    nghttp2_rcbuf *name, nghttp2_rcbuf *value, uint8_t flags, void *owner,
) except FAILED:
    return (<Nghttp2Engine>owner).reader.add(name, value, flags & NGHTTP2_NV_FLAG_NO_INDEX != 0)


cdef int _on_section(Nghttp2Engine engine, int32_t stream_id, bint end) except FAILED:
    cdef Nghttp2Stream stream = _find(engine, stream_id)
    cdef list fields = engine.reader.end(stream is not None and stream.to_head, end)
    cdef str refusal = engine.reader.refusal
    if stream is None:
        return _on_request(engine, stream_id, fields, end)
    if refusal is None and stream.has_head and stream.missing > 0:
        refusal = refusals.CONTENT_LENGTH
    if refusal is not None:
        return _reset_over(engine, stream_id, ENHANCE_YOUR_CALM if engine.reader.too_great else PROTOCOL_ERROR, refusal)
    if stream.has_head:
        stream.ended_by_peer = True
        return 0 if stream.muted else tell(engine, stream, ON_TRAILERS, fields, True, 0)
    stream.has_watched = engine.reader.has_watched
    if engine.reader.interim:
        stream.interims += 1
        if stream.interims > engine.session.max_interims:
            return _reset_over(engine, stream_id, ENHANCE_YOUR_CALM, refusals.TOO_MANY_INTERIM)
        return 0 if stream.muted else tell(engine, stream, ON_INTERIM, fields, False, 0)
    stream.missing = engine.reader.content_length
    stream.has_head = True
    stream.ended_by_peer = end
    stream.status = engine.reader.status
    engine.guard.credit_head()
    engine.guard.credit_response()
    return 0 if stream.muted else tell(engine, stream, ON_RESPONSE, fields, end, 0)


cdef int _on_request(Nghttp2Engine engine, int32_t stream_id, list fields, bint end) except -1:
    cdef Nghttp2Stream stream
    if engine.going_away:
        # GOAWAY was written while the block was coming in, and named a stream before this one.
        return _reset_over(engine, stream_id, REFUSED_STREAM, refusals.GOING_AWAY)
    if engine.reader.refusal is not None and not engine.reader.too_great:
        return _reset_over(engine, stream_id, PROTOCOL_ERROR, engine.reader.refusal)
    stream = engine.new_stream(stream_id)
    nghttp2_session_set_stream_user_data(engine.session.handle, stream_id, <void *>stream)
    stream.missing = engine.reader.content_length
    stream.has_head = True
    stream.ended_by_peer = end
    stream.method = engine.reader.method
    stream.path = engine.reader.path
    stream.head_octets = engine.reader.octets
    stream.has_watched = engine.reader.has_watched
    engine.last_processed = stream_id
    if engine.reader.too_great:
        tell(engine, stream, ON_REQUEST, [], end, 0)
        return engine.guard.charge_reset()
    engine.guard.credit_head()
    return tell(engine, stream, ON_REQUEST, fields, end, 0)


# ---- content


cdef int _on_frame_begins(nghttp2_session *session, const nghttp2_frame_hd *header, void *owner) except FAILED:
    """If DATA is about to be read: is there room for it, and is content in its place?"""
    cdef Nghttp2Engine engine
    cdef Nghttp2Stream stream
    if header.type != DATA:
        return 0
    engine = <Nghttp2Engine>owner
    stream = _find(engine, header.stream_id)
    if stream is None:
        return 0
    engine.guard.credit_live_content(<Py_ssize_t>header.length)
    if not stream.has_head:
        return _reset_over(engine, header.stream_id, PROTOCOL_ERROR, refusals.STREAM_ORDER)
    # The library gives a window back when half of it was acknowledged: less than that needs no look at it.
    if <Py_ssize_t>header.length + stream.owed_octets <= engine.sure_window:
        return 0
    if <Py_ssize_t>header.length > nghttp2_session_get_stream_local_window_size(session, header.stream_id):
        if <Py_ssize_t>header.length <= nghttp2_session_get_local_window_size(session):
            return _reset_over(engine, header.stream_id, FLOW_CONTROL_ERROR, refusals.FLOW_CONTROL)
    return 0


cdef int _on_content(
    nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t count, void *owner
) except FAILED:
    """The content of a DATA frame; `_on_data` follows."""
    if _find(<Nghttp2Engine>owner, stream_id) is None:
        nghttp2_session_consume_connection(session, count)
    else:
        (<Nghttp2Engine>owner).content = PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>count)
    return 0


cdef int _on_data(Nghttp2Engine engine, int32_t stream_id, bint end) except FAILED:
    cdef Nghttp2Stream stream = _find(engine, stream_id)
    cdef bytes content = engine.content
    cdef Py_ssize_t count = 0
    engine.content = None
    if stream is None:
        return 0
    if content is not None:
        count = PyBytes_GET_SIZE(content)
        engine.guard.credit_content(count, 1)
    if stream.missing >= 0:
        stream.missing -= count
        if stream.missing < 0 or (end and stream.missing):
            nghttp2_session_consume_connection(engine.session.handle, <size_t>count)
            return _reset_over(engine, stream_id, PROTOCOL_ERROR, refusals.CONTENT_LENGTH)
    stream.ended_by_peer = end
    if stream.muted:
        nghttp2_session_consume_connection(engine.session.handle, <size_t>count)
    elif count or end:
        engine.owed_octets += count
        if stream.receiver is None:
            if count and not end:
                nghttp2_session_consume_stream(engine.session.handle, stream_id, <size_t>count)
            return 0
        stream.owed_octets += count
        tell(engine, stream, ON_DATA, content if count else b"", end, 0)
    return 0


cdef int _write_content(
    nghttp2_session *session, nghttp2_frame *frame, const uint8_t *header,
    size_t length, nghttp2_data_source *source, void *owner,
) except FAILED:
    """DATA of the stream whose turn it is leaves."""
    cdef Nghttp2Engine engine = <Nghttp2Engine>owner
    cdef char *place = engine.session.outbox.room(FRAME_HEADER_OCTETS + <Py_ssize_t>length)
    memcpy(place, header, FRAME_HEADER_OCTETS)
    engine.queued -= <Py_ssize_t>length
    engine.turn.pull(place + FRAME_HEADER_OCTETS, <Py_ssize_t>length)
    engine.turn = None
    return 0


# ---- ends


cdef int _reset_over(Nghttp2Engine engine, int32_t stream_id, uint32_t code, str reason) except -1:
    """Reset a stream on which the peer broke a rule, whether the handler has been told of it or not."""
    cdef Nghttp2Stream stream
    engine.handler.on_stream_refused(stream_id, reason)
    nghttp2_submit_rst_stream(engine.session.handle, NGHTTP2_FLAG_NONE, stream_id, code)
    stream = _find(engine, stream_id)
    if stream is not None:
        stream.refusal = reason
        stream.forget()
        if not stream.muted:
            tell(engine, stream, ON_RESET, None, False, code)
    return engine.guard.charge_reset()


cdef int _on_closed(nghttp2_session *session, int32_t stream_id, uint32_t code, void *owner) except FAILED:
    """The library has closed a stream. If neither side has reset it, its send window was pushed too far."""
    cdef Nghttp2Engine engine = <Nghttp2Engine>owner
    cdef Nghttp2Stream stream = _find(engine, stream_id)
    if stream is None:
        return 0
    stream.leave()
    if code == FLOW_CONTROL_ERROR:
        raise ConnectionFault(code, "a stream's window is pushed past 2^31-1")
    return 0


# ---- the connection


cdef int _on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *owner) except FAILED:
    """A frame is complete, and the library has acted upon it."""
    cdef Nghttp2Engine engine = <Nghttp2Engine>owner
    cdef int kind = frame.hd.type
    cdef bint end = frame.hd.flags & END_STREAM != 0
    cdef Nghttp2Stream stream
    if kind == DATA:
        return _on_data(engine, frame.hd.stream_id, end)
    if kind == HEADERS:
        return _on_section(engine, frame.hd.stream_id, end)
    if kind == WINDOW_UPDATE:
        stream = _find(engine, frame.hd.stream_id) if frame.hd.stream_id else None
        if stream is not None:
            stream.schedule()
    elif kind == RST_STREAM:
        stream = _find(engine, frame.hd.stream_id)
        if stream is None:
            return engine.guard.charge_control_frame()
        stream.forget()
        tell(engine, stream, ON_RESET, None, True, frame.rst_stream.error_code)
        if not stream.has_sent_head:
            return engine.guard.charge_reset()
    elif kind == SETTINGS and not frame.hd.flags & ACK:
        return _on_settings(engine, frame)
    elif kind == PING and frame.hd.flags & ACK:
        engine.handler.on_ping_acknowledged(frame.ping.opaque_data[:8])
    return 0


cdef int _on_settings(Nghttp2Engine engine, const nghttp2_frame *frame) except -1:
    cdef size_t place
    cdef Nghttp2Stream stream
    cdef nghttp2_session *session = engine.session.handle
    for place in range(frame.settings.niv):
        if frame.settings.iv[place].settings_id == NGHTTP2_SETTINGS_HEADER_TABLE_SIZE:
            engine.session.writer.resize(frame.settings.iv[place].value)
    engine.peer_max_concurrent_streams = nghttp2_session_get_remote_settings(
        session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    )
    engine.peer_max_section_octets = nghttp2_session_get_remote_settings(session, NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE)
    for stream in engine.live_streams():
        stream.schedule()
    engine.handler.on_settings()
    return 0


cdef int handle_frame(Nghttp2Engine engine, const uint8_t *frame, Py_ssize_t count) except -1:
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
        if engine.client:
            engine.session.last_taken = number_at(frame + 9) & MAX_STREAM_ID
        engine.handler.on_go_away(number_at(frame + 9) & MAX_STREAM_ID, number_at(frame + 13), debug)
    return 0


cdef int _on_suspicious_update(Nghttp2Engine engine, const uint8_t *frame) except -1:
    """An update of a stream's window, by nothing or by very much."""
    cdef Nghttp2Stream stream = _find(engine, stream_of(frame))
    cdef uint32_t increment = number_at(frame + FRAME_HEADER_OCTETS) & MAX_STREAM_ID
    cdef int32_t window
    if stream is not None:
        window = nghttp2_session_get_stream_remote_window_size(engine.session.handle, <int32_t>stream.id)
        if not increment or <uint32_t>window > MAX_STREAM_ID - increment:
            return _reset_over(
                engine, stream_of(frame), FLOW_CONTROL_ERROR if increment else PROTOCOL_ERROR, refusals.FLOW_CONTROL
            )
    return engine.session.feed(frame, FRAME_HEADER_OCTETS + 4)


cdef ssize_t _on_length_asked(
    nghttp2_session *session, uint8_t kind, int32_t stream_id,
    int32_t connection_window, int32_t stream_window, uint32_t max_frame, void *owner,
) noexcept:
    """Return how long the DATA frame of the stream whose turn it is shall be."""
    return (<Nghttp2Engine>owner).session.content_octets


cdef nghttp2_session_callbacks *_CALLBACKS = NULL
if nghttp2_session_callbacks_new(&_CALLBACKS) != 0:
    raise MemoryError
nghttp2_session_callbacks_set_on_begin_frame_callback(_CALLBACKS, _on_frame_begins)
nghttp2_session_callbacks_set_on_begin_headers_callback(_CALLBACKS, _on_section_begins)
nghttp2_session_callbacks_set_on_header_callback2(_CALLBACKS, _on_line)
nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_CALLBACKS, _on_content)
nghttp2_session_callbacks_set_on_frame_recv_callback(_CALLBACKS, _on_frame)
nghttp2_session_callbacks_set_on_stream_close_callback(_CALLBACKS, _on_closed)
nghttp2_session_callbacks_set_send_data_callback(_CALLBACKS, _write_content)
nghttp2_session_callbacks_set_data_source_read_length_callback(_CALLBACKS, _on_length_asked)

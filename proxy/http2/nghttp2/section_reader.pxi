"""Received field sections: the field lines as Python objects, and whether the section is well formed.

`policy.fields` has the rules (RFC 9113, 8.1 to 8.3). A section whose lines are all plain is accepted here, because that
is a look at a few bits; every other section is given to `policy.fields`. libnghttp2 has rules, too. They are switched
off: they accept some malformed sections, drop lines from others, and refuse characters that RFC 9113 allows.

Most lines of a head are in the decoder's table, which hands out the same buffers every time. So the tuple that was made
of two buffers is kept with them, already checked. A repeated line costs no allocation, and no hashing when the other
connection looks it up in its own table. Lines that most compressors leave out of the table (`:path`, `content-length`)
have a name that is in it. They are kept by that name, for a sender that repeats the value.
"""

cdef enum:
    REQUEST
    RESPONSE
    TRAILERS

cdef enum:
    KEPT_LINES = 64
    KEPT_WAYS = 4  # places that a line can have
    KEPT_NAMES = 32
    FIRST_LINES = 32
    _MOST_KEPT_OCTETS = 512  # of a line that is kept: what peers send must not decide how much memory we use
    _FAR = 4  # each octet of a block may stand for 4 KiB: a section this much over the limit is not read to its end
    _MOST_LENGTH_DIGITS = 18

cdef struct Line:
    nghttp2_rcbuf *name
    nghttp2_rcbuf *value
    PyObject *field
    bint never
    Py_ssize_t octets
    int kind
    int64_t number

cdef enum:
    # Kinds of lines, a bit each.
    _METHOD = 1 << 0
    _SCHEME = 1 << 1
    _AUTHORITY = 1 << 2
    _PATH = 1 << 3
    _STATUS = 1 << 4
    _CONTENT_LENGTH = 1 << 5
    _OTHER = 1 << 6
    _UNUSUAL = 1 << 7  # the section is for `policy.fields`
    _WATCHED = 1 << 8  # the name is among those that the engine's owner asked for
    _PSEUDO_FIELDS = (1 << 5) - 1
    _ONCE = (1 << 6) - 1

cdef uint32_t[3] _REQUIRED
_REQUIRED[REQUEST] = _METHOD | _SCHEME | _AUTHORITY | _PATH
_REQUIRED[RESPONSE] = _STATUS
_REQUIRED[TRAILERS] = 0

cdef dict _KINDS = {
    b":method": _METHOD,
    b":scheme": _SCHEME,
    b":authority": _AUTHORITY,
    b":path": _PATH,
    b":status": _STATUS,
    b"content-length": _CONTENT_LENGTH,
    **{name: _OTHER | _UNUSUAL for name in (b"host", b"te", *CONNECTION_SPECIFIC)},
}

cdef bint[256] _IN_NAME
for _octet in range(256):
    # A token without upper case (RFC 9110, 5.6.2; RFC 9113, 8.2.1).
    _IN_NAME[_octet] = _octet in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"


@cython.final
@cython.no_gc
cdef class SectionReader:
    """Reads one section at a time: `begin`, `add` for each line, `end`.

    Results: `refusal`, the word of `policy.refusals` for the rule that the section breaks, or None. `too_great`: it is
    over the limit, and lines are missing; of a request, only whether its method is HEAD is known. `content_length` is
    -1 where nothing is announced, 0 where there can be no content. `method` and `path` of a request; `path` is empty
    for CONNECT. `interim` and `status` of a response.
    """

    cdef str refusal
    cdef bint too_great
    cdef bint interim
    cdef bint has_watched
    cdef Py_ssize_t octets
    cdef int status
    cdef int64_t content_length
    cdef bytes method
    cdef bytes path

    cdef PyObject **_fields
    cdef Py_ssize_t _count
    cdef Py_ssize_t _capacity
    cdef frozenset _watched_names
    cdef int _section
    cdef uint32_t _met
    cdef Py_ssize_t _most_octets
    cdef PyObject *_method
    cdef PyObject *_path
    cdef Line _by_buffers[KEPT_LINES]
    cdef Line _by_name[KEPT_NAMES]

    def __cinit__(self, Py_ssize_t most_octets, frozenset watched_names):
        self._most_octets = most_octets
        self._watched_names = watched_names
        self._capacity = FIRST_LINES
        self._fields = <PyObject **>PyMem_Malloc(FIRST_LINES * sizeof(PyObject *))
        if self._fields == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int place
        self._drop_fields()
        PyMem_Free(self._fields)
        for place in range(KEPT_LINES):
            _release(&self._by_buffers[place])
        for place in range(KEPT_NAMES):
            _release(&self._by_name[place])

    cdef int begin(self, int section) except -1:
        """Expect a section of this kind."""
        self._drop_fields()
        self._section = section
        self.octets = 0
        self._met = 0
        self.too_great = self.has_watched = False
        self.content_length = -1
        return 0

    cdef int add(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1:
        """Add a line; raises ConnectionFault if the section is so long that it is not to be read to its end."""
        cdef size_t slot = _line_slot(name, value)
        cdef int way
        cdef Line *line
        for way in range(KEPT_WAYS):
            line = &self._by_buffers[slot ^ way]
            if line.name == name and line.value == value and line.never == never and line.field != NULL:
                return self._take(line) if self._fits(line.octets) else 0
        return self._add_new(name, value, never)

    cdef int _add_new(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1:
        """Add a line whose buffers are not known together."""
        cdef nghttp2_vec name_octets = nghttp2_rcbuf_get_buf(name)
        cdef nghttp2_vec value_octets = nghttp2_rcbuf_get_buf(value)
        cdef Line *same_name = &self._by_name[_name_slot(name)]
        cdef Line line
        cdef bytes name_text
        cdef object field
        line.octets = <Py_ssize_t>(name_octets.len + value_octets.len + 32)
        if not self._fits(line.octets):
            return 0
        if same_name.field == NULL or same_name.name != name:
            name_text = PyBytes_FromStringAndSize(<char *>name_octets.base, <Py_ssize_t>name_octets.len)
        elif _has_value(<object>same_name.field, &value_octets, never):
            return self._take(same_name)
        else:
            name_text = <bytes>PyTuple_GET_ITEM(<object>same_name.field, 0)
        field = (name_text, PyBytes_FromStringAndSize(<char *>value_octets.base, <Py_ssize_t>value_octets.len), never)
        line.name, line.value, line.never, line.field = name, value, never, <PyObject *>field
        _judge(&line, name_text, <const uint8_t *>PyBytes_AS_STRING(<bytes>field[1]), <Py_ssize_t>value_octets.len)
        if self._watched_names and name_text in self._watched_names:
            line.kind |= _WATCHED
        if line.octets <= _MOST_KEPT_OCTETS:
            self._keep_by_buffers(_line_slot(name, value), &line)
            _keep(same_name, &line)
        return self._take(&line)

    cdef void _keep_by_buffers(self, size_t slot, const Line *line) noexcept:
        """Keep a line in the first of its places; the others move on by one.

        With fewer places, lines of every head that had the same ones pushed each other out.
        """
        cdef int way
        if self._by_buffers[slot].field != NULL:
            _release(&self._by_buffers[slot ^ (KEPT_WAYS - 1)])
            for way in range(KEPT_WAYS - 1, 0, -1):
                self._by_buffers[slot ^ way] = self._by_buffers[slot ^ (way - 1)]
            self._by_buffers[slot].field = NULL
        _keep(&self._by_buffers[slot], line)

    cdef bint _fits(self, Py_ssize_t octets) except -1:
        self.octets += octets
        if self.octets <= self._most_octets:
            return True
        self.too_great = True
        if self.octets > _FAR * self._most_octets:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "a field section far over SETTINGS_MAX_HEADER_LIST_SIZE")
        return False

    cdef int _take(self, const Line *line) except -1:
        """Append a line to the section."""
        cdef int kind = line.kind
        cdef void *fields
        if self._count == self._capacity:
            fields = PyMem_Realloc(self._fields, <size_t>(2 * self._capacity) * sizeof(PyObject *))
            if fields == NULL:
                raise MemoryError
            self._fields = <PyObject **>fields
            self._capacity *= 2
        Py_INCREF(<object>line.field)
        self._fields[self._count] = line.field
        self._count += 1
        if kind & _ONCE:
            if kind & self._met or (kind & _PSEUDO_FIELDS and self._met & (_OTHER | _CONTENT_LENGTH)):
                kind |= _UNUSUAL
            if kind & _METHOD:
                self._method = PyTuple_GET_ITEM(<object>line.field, 1)  # the section holds it
            elif kind & _PATH:
                self._path = PyTuple_GET_ITEM(<object>line.field, 1)
            elif kind & _STATUS:
                self.status = <int>line.number
            elif kind & _CONTENT_LENGTH:
                self.content_length = line.number
        self._met |= <uint32_t>kind
        return 0

    cdef list end(self, bint to_head, bint ends):
        """Return the section. `to_head`: a response answers a HEAD request. `ends`: the section ends its stream."""
        cdef list fields = PyList_New(self._count)
        cdef Py_ssize_t place
        for place in range(self._count):
            PyList_SET_ITEM(fields, place, <object>self._fields[place])  # with its reference
        self._count = 0
        self.has_watched = self._met & _WATCHED != 0
        self.refusal = None
        if self.too_great:
            self.refusal = refusals.SECTION_TOO_LARGE
        elif not self._is_plain(to_head, ends):
            self._ask_policy(fields, to_head, ends)
        if self._section == REQUEST and self.too_great:
            self.method = b"HEAD" if self._met & _METHOD and <bytes>self._method == b"HEAD" else b""
            self.path, self.content_length, self.octets = b"", -1, 0
        elif self._section == REQUEST and self.refusal is None:
            self.method = <bytes>self._method
            self.path = <bytes>self._path if self._met & _PATH else b""
        return fields

    cdef bint _is_plain(self, bint to_head, bint ends) noexcept:
        """Return whether the section is well formed for certain; if so, the results are complete."""
        if self._met & (_UNUSUAL | _PSEUDO_FIELDS) != _REQUIRED[self._section]:
            return False
        if self._section == TRAILERS:
            return ends
        if self._section == RESPONSE:
            self.interim = self.status < 200
            if self.interim:
                self.content_length = -1
                return not ends
            if to_head or self.status == 204 or self.status == 304:
                self.content_length = 0  # RFC 9110, 6.4.1: no content, whatever content-length says
        return not ends or self.content_length <= 0

    cdef int _ask_policy(self, list fields, bint to_head, bint ends) except -1:
        """Let `policy.fields` decide."""
        cdef object length = None
        try:
            if self._section == REQUEST:
                length = check_request(fields, ends=ends)
            elif self._section == RESPONSE:
                self.interim, length = check_response(fields, to_head=to_head, ends=ends)
            else:
                check_trailers(fields, ends=ends)
        except Malformed as exc:
            self.refusal = exc.reason
        self.content_length = -1 if length is None else length
        return 0

    cdef void _drop_fields(self) noexcept:
        cdef Py_ssize_t place
        for place in range(self._count):
            Py_XDECREF(self._fields[place])
        self._count = 0


cdef inline size_t _line_slot(nghttp2_rcbuf *name, nghttp2_rcbuf *value) noexcept:
    return ((<uintptr_t>name >> 5) * 31 + (<uintptr_t>value >> 5)) % KEPT_LINES


cdef size_t _name_slot(nghttp2_rcbuf *name) noexcept:
    """Fibonacci hashing: the names of the static table stand at regular distances."""
    return <size_t>((<uintptr_t>name >> 3) * 0x9E3779B97F4A7C15ULL >> 59) % KEPT_NAMES


cdef bint _has_value(object field, nghttp2_vec *octets, bint never) noexcept:
    cdef object value = <object>PyTuple_GET_ITEM(field, 1)
    return (
        PyBytes_GET_SIZE(value) == <Py_ssize_t>octets.len
        and memcmp(PyBytes_AS_STRING(value), octets.base, octets.len) == 0
        and (<object>PyTuple_GET_ITEM(field, 2) is True) == never
    )


cdef void _keep(Line *place, const Line *line) noexcept:
    nghttp2_rcbuf_incref(line.name)
    nghttp2_rcbuf_incref(line.value)
    Py_INCREF(<object>line.field)
    _release(place)
    place[0] = line[0]


cdef void _release(Line *line) noexcept:
    if line.field != NULL:
        nghttp2_rcbuf_decref(line.name)
        nghttp2_rcbuf_decref(line.value)
        Py_XDECREF(line.field)
        line.field = NULL


cdef int _judge(Line *line, bytes name, const uint8_t *value, Py_ssize_t length) noexcept:
    """Set what a line is (`kind`), and the number that it says; what is not plain is _UNUSUAL."""
    cdef PyObject *found = PyDict_GetItem(_KINDS, name)
    cdef bint plain = True
    cdef bint controls = False
    cdef Py_ssize_t place
    line.kind = _OTHER if found == NULL else <int><object>found
    line.number = 0
    if found == NULL:
        plain = PyBytes_GET_SIZE(name) > 0
        for place in range(PyBytes_GET_SIZE(name)):
            plain = plain and _IN_NAME[<uint8_t>PyBytes_AS_STRING(name)[place]]
    if line.kind & _PSEUDO_FIELDS:
        plain = length > 0
        for place in range(length):
            plain = plain and value[place] > 0x20 and value[place] != 0x7F
        if line.kind == _PATH:
            plain = plain and value[0] == c"/"
        elif line.kind == _METHOD:
            plain = plain and not (length == 7 and memcmp(value, b"CONNECT", 7) == 0)
            for place in range(length):  # of other tokens, the policy decides
                plain = plain and c"A" <= value[place] <= c"Z"
        elif line.kind == _AUTHORITY:
            plain = plain and memchr(value, c"@", <size_t>length) == NULL
    if line.kind == _STATUS or line.kind == _CONTENT_LENGTH:
        plain = 0 < length <= _MOST_LENGTH_DIGITS
        for place in range(length if plain else 0):
            plain = plain and c"0" <= value[place] <= c"9"
            line.number = line.number * 10 + value[place] - c"0"
        if line.kind == _STATUS:
            plain = plain and length == 3 and line.number >= 100 and line.number != 101
    elif plain and length:
        for place in range(length):  # without branches: compilers make vector instructions of it
            controls |= ((value[place] < 0x20) & (value[place] != c"\t")) | (value[place] == 0x7F)
        plain = not (
            controls
            or value[0] == c" "
            or value[0] == c"\t"
            or value[length - 1] == c" "
            or value[length - 1] == c"\t"
        )
    if not plain:
        line.kind |= _UNUSUAL
    return 0

"""Field sections on their way in: lines as Python sees them, and whether the section is well formed.

The rules are those of `heads`, word for word: both engines refuse the same sections (RFC 9113, 8.1 to 8.3). libnghttp2
has such rules too; they are switched off, because they let some of these pass, drop lines that they do not like from an
otherwise good section, and refuse control characters that RFC 9113 lets pass.

Most lines of a head are in the decoder's table, which hands out the same buffers every time. So the line that was made
of two buffers is kept with them, checked, and costs no more than a look: no allocation, and no hashing when the other
connection looks it up in its own table. Lines that most compressors leave out of the table (`:path`, `content-length`)
have a name that is in it, and are kept by that, for whoever sends the same value again.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.string cimport memchr, memcmp, memset

from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_rcbuf, nghttp2_rcbuf_decref, nghttp2_rcbuf_get_buf, nghttp2_rcbuf_incref, nghttp2_vec

cdef enum:
    # What a line is, by its name. Those up to _UNKNOWN_PSEUDO are pseudo-fields; those up to _CONTENT_LENGTH come once.
    _METHOD
    _SCHEME
    _AUTHORITY
    _PATH
    _STATUS
    _UNKNOWN_PSEUDO
    _HOST
    _CONTENT_LENGTH
    _OTHER
    _MALFORMED
    _WATCHED = 1 << 4  # added to what a line is: its name is among those that the engine's owner wants to know of

cdef enum:
    _MOST_KEPT_OCTETS = 512  # of a line that is kept: what peers send must not decide how much memory we use
    _FAR = 4  # each octet of a block may stand for 4 KiB: a section this much over the limit is not read to its end
    _MOST_LENGTH_DIGITS = 18

cdef uint32_t[3] _ALLOWED
_ALLOWED[REQUEST] = 1 << _METHOD | 1 << _SCHEME | 1 << _AUTHORITY | 1 << _PATH
_ALLOWED[RESPONSE] = 1 << _STATUS
_ALLOWED[TRAILERS] = 0

cdef bint[256] _IN_NAME
for _octet in range(256):
    # A token without upper case (RFC 9110, 5.6.2; RFC 9113, 8.2.1).
    _IN_NAME[_octet] = _octet in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"


@cython.final
@cython.no_gc
cdef class SectionReader:
    """Reads one section at a time: `begin`, `add_kept` or else `add` for each line, `end`."""

    def __cinit__(self, Py_ssize_t most_octets, frozenset watched_names):
        self._most_octets = most_octets
        self._watched_names = watched_names
        memset(self._kept, 0, sizeof(self._kept))
        memset(self._repeated, 0, sizeof(self._repeated))
        self._capacity = FIRST_LINES
        self._lines = <PyObject **>PyMem_Malloc(FIRST_LINES * sizeof(PyObject *))
        if self._lines == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int place
        self._drop_lines()
        PyMem_Free(self._lines)
        for place in range(KEPT_LINES):
            _let_go(&self._kept[place])
        for place in range(KEPT_NAMES):
            _let_go_of_repeated(&self._repeated[place])

    cdef int begin(self, int kind) except -1:
        """Forget the section before and expect one of this kind."""
        self._drop_lines()
        self._kind = kind
        self._octets = 0
        self._met = 0
        self._regular = self.malformed = self.too_great = self.far_too_great = self.interim = self.has_watched = False
        self.content_length = -1
        return 0

    cdef bint add_kept(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) noexcept:
        """Take a line if it is kept; return whether it was."""
        cdef Kept *kept = &self._kept[_slot(name, value)]
        if kept.name != name or kept.value != value or kept.never != never or kept.field == NULL:
            return False
        if self._octets + kept.octets > self._most_octets or self._count == self._capacity:
            return False
        self._octets += kept.octets
        Py_INCREF(<object>kept.field)
        self._lines[self._count] = kept.field
        self._count += 1
        self._note(kept.token, <object>kept.field)
        return True

    cdef int add(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never) except -1:
        """Take any line."""
        cdef Py_ssize_t octets = <Py_ssize_t>(nghttp2_rcbuf_get_buf(name).len + nghttp2_rcbuf_get_buf(value).len + 32)
        cdef object field
        cdef int token = _MALFORMED
        self._octets += octets
        if self._octets > self._most_octets:
            self.too_great = True
            self.far_too_great = self._octets > _FAR * self._most_octets
            return 0
        field = self._read(name, value, never, &token)
        if self._count == self._capacity:
            self._grow()
        Py_INCREF(field)
        self._lines[self._count] = <PyObject *>field
        self._count += 1
        self._note(token, field)
        return 0

    cdef int _grow(self) except -1:
        cdef void *lines = PyMem_Realloc(self._lines, <size_t>(2 * self._capacity) * sizeof(PyObject *))
        if lines == NULL:
            raise MemoryError
        self._lines = <PyObject **>lines
        self._capacity *= 2
        return 0

    cdef void _drop_lines(self) noexcept:
        cdef Py_ssize_t place
        for place in range(self._count):
            Py_XDECREF(self._lines[place])
        self._count = 0

    cdef bytes method(self):
        """Return the value of `:method` of a well-formed request head."""
        return <bytes>self._values[_METHOD]

    cdef bytes path(self):
        """Return the value of `:path` of a well-formed request head; nothing for CONNECT."""
        return <bytes>self._values[_PATH] if self._met & 1 << _PATH else b""

    cdef object _read(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, bint never, int *token):
        """Return the field of a line whose buffers are not known together; `token` is what it is."""
        cdef nghttp2_vec name_octets = nghttp2_rcbuf_get_buf(name)
        cdef nghttp2_vec value_octets = nghttp2_rcbuf_get_buf(value)
        cdef Repeated *repeated = &self._repeated[_name_slot(name)]
        cdef Kept *kept
        cdef object field
        if repeated.name == name and _says(<object>repeated.field, &value_octets, never):
            token[0] = repeated.token
            return <object>repeated.field
        field = (
            PyBytes_FromStringAndSize(<char *>name_octets.base, <Py_ssize_t>name_octets.len),
            PyBytes_FromStringAndSize(<char *>value_octets.base, <Py_ssize_t>value_octets.len),
            never,
        )
        token[0] = _token(name_octets.base, name_octets.len, value_octets.base, value_octets.len)
        if self._watched_names and field[0] in self._watched_names:
            token[0] |= _WATCHED
        if name_octets.len + value_octets.len + 32 <= _MOST_KEPT_OCTETS:
            kept = &self._kept[_slot(name, value)]
            _let_go(kept)
            nghttp2_rcbuf_incref(name)
            nghttp2_rcbuf_incref(value)
            Py_INCREF(field)
            kept.name, kept.value, kept.never = name, value, never
            kept.field, kept.token = <PyObject *>field, token[0]
            kept.octets = <Py_ssize_t>(name_octets.len + value_octets.len + 32)
            _let_go_of_repeated(repeated)
            nghttp2_rcbuf_incref(name)
            Py_INCREF(field)
            repeated.name, repeated.field, repeated.token = name, <PyObject *>field, token[0]
        return field

    cdef list end(self, bint to_head):
        """Return the section, and let `malformed`, `interim` and `content_length` say what it is.

        `to_head`: a response answers a HEAD request. `content_length` is -1 where nothing is announced, 0 where there
        can be no content.
        """
        cdef list fields = PyList_New(self._count)
        cdef Py_ssize_t place
        for place in range(self._count):
            Py_INCREF(<object>self._lines[place])
            PyList_SET_ITEM(fields, place, <object>self._lines[place])
        if self._kind == REQUEST:
            self.malformed = self.malformed or not self._is_request()
        elif self._kind == RESPONSE:
            self.malformed = self.malformed or not self._is_response(to_head)
        return fields

    cdef void _note(self, int token, object field) noexcept:
        cdef uint32_t bit
        if token & _WATCHED:
            self.has_watched = True
            token &= ~_WATCHED
        bit = <uint32_t>1 << token
        if token == _MALFORMED:
            self.malformed = True
        elif token == _OTHER:
            self._regular = True
        else:
            if token > _UNKNOWN_PSEUDO:
                self._regular = True
            elif self._regular or not bit & _ALLOWED[self._kind]:
                self.malformed = True
            if bit & self._met:
                self.malformed = True
            self._met |= bit
            self._values[token] = PyTuple_GET_ITEM(field, 1)  # the section holds it

    cdef bint _is_request(self) noexcept:
        cdef object method, path
        if not self._met & 1 << _METHOD:
            return False
        method = <object>self._values[_METHOD]
        if not _is_visible(method):
            return False
        if method == b"CONNECT":
            # RFC 9113, 8.5; it announces nothing.
            return self._met & (1 << _SCHEME | 1 << _PATH | 1 << _AUTHORITY) == 1 << _AUTHORITY and (
                PyBytes_GET_SIZE(<object>self._values[_AUTHORITY]) > 0
            )
        if not self._met & 1 << _SCHEME or not PyBytes_GET_SIZE(<object>self._values[_SCHEME]):
            return False
        if not self._met & 1 << _PATH:
            return False
        path = <object>self._values[_PATH]
        if not _is_visible(path):
            return False
        if PyBytes_AS_STRING(path)[0] != c"/" and not (path == b"*" and method == b"OPTIONS"):
            return False
        return self._has_authority() and self._has_length()

    cdef bint _has_authority(self) noexcept:
        """RFC 9113, 8.3.1: `:authority` or `host`; not empty, no user information, not contradicting each other."""
        cdef bint with_host = self._met & 1 << _HOST != 0
        cdef object named, host
        cdef Py_ssize_t place, length
        if self._met & 1 << _AUTHORITY:
            named = <object>self._values[_AUTHORITY]
        elif with_host:
            named = <object>self._values[_HOST]
        else:
            return False
        length = PyBytes_GET_SIZE(named)
        if not _is_visible(named) or memchr(PyBytes_AS_STRING(named), c"@", <size_t>length):
            return False
        if with_host:
            host = <object>self._values[_HOST]
            if PyBytes_GET_SIZE(host) != length:
                return False
            for place in range(length):
                if _lower(PyBytes_AS_STRING(host)[place]) != _lower(PyBytes_AS_STRING(named)[place]):
                    return False
        return True

    cdef bint _is_response(self, bint to_head) noexcept:
        cdef const char *status
        if not self._met & 1 << _STATUS or PyBytes_GET_SIZE(<object>self._values[_STATUS]) != 3:
            return False
        status = PyBytes_AS_STRING(<object>self._values[_STATUS])
        if not (c"1" <= status[0] <= c"9" and c"0" <= status[1] <= c"9" and c"0" <= status[2] <= c"9"):
            return False
        if memcmp(status, b"101", 3) == 0 or not self._has_length():
            return False
        self.status = (status[0] - 48) * 100 + (status[1] - 48) * 10 + status[2] - 48
        if status[0] == c"1":
            self.interim = True
            self.content_length = -1
        elif to_head or memcmp(status, b"204", 3) == 0 or memcmp(status, b"304", 3) == 0:
            # RFC 9110, 6.4.1: no content, whatever content-length says.
            self.content_length = 0
        return True

    cdef bint _has_length(self) noexcept:
        """Read `content-length`, if there is one; False if it is no length."""
        cdef object value
        cdef Py_ssize_t place
        cdef char digit
        cdef int64_t length = 0
        if not self._met & 1 << _CONTENT_LENGTH:
            return True
        value = <object>self._values[_CONTENT_LENGTH]
        if not 0 < PyBytes_GET_SIZE(value) <= _MOST_LENGTH_DIGITS:
            return False
        for place in range(PyBytes_GET_SIZE(value)):
            digit = PyBytes_AS_STRING(value)[place]
            if not c"0" <= digit <= c"9":
                return False
            length = length * 10 + (digit - c"0")
        self.content_length = length
        return True


cdef size_t _slot(nghttp2_rcbuf *name, nghttp2_rcbuf *value) noexcept:
    return ((<uintptr_t>name >> 5) * 31 + (<uintptr_t>value >> 5)) % KEPT_LINES


cdef size_t _name_slot(nghttp2_rcbuf *name) noexcept:
    """Fibonacci hashing: the names of the static table stand at regular distances."""
    return <size_t>((<uintptr_t>name >> 3) * 0x9E3779B97F4A7C15ULL >> 59) % KEPT_NAMES


cdef bint _says(object field, nghttp2_vec *octets, bint never) noexcept:
    """Whether the field, whose name is known to be the same, has this value and mark."""
    cdef object value = <object>PyTuple_GET_ITEM(field, 1)
    return (
        PyBytes_GET_SIZE(value) == <Py_ssize_t>octets.len
        and memcmp(PyBytes_AS_STRING(value), octets.base, octets.len) == 0
        and (<object>PyTuple_GET_ITEM(field, 2) is True) == never
    )


cdef void _let_go_of_repeated(Repeated *repeated) noexcept:
    if repeated.field != NULL:
        nghttp2_rcbuf_decref(repeated.name)
        Py_XDECREF(repeated.field)
        repeated.name, repeated.field = NULL, NULL


cdef void _let_go(Kept *kept) noexcept:
    if kept.field != NULL:
        nghttp2_rcbuf_decref(kept.name)
        nghttp2_rcbuf_decref(kept.value)
        Py_XDECREF(kept.field)
        kept.field = NULL


cdef int _token(const uint8_t *name, size_t name_length, const uint8_t *value, size_t value_length) noexcept:
    """Return what a line is, and whether name and value are well formed by themselves."""
    cdef size_t place
    if memchr(value, c"\r", value_length) or memchr(value, c"\n", value_length) or memchr(value, 0, value_length):
        return _MALFORMED
    if value_length and (_is_blank(value[0]) or _is_blank(value[value_length - 1])):
        return _MALFORMED
    if name_length and name[0] == c":":
        return _pseudo_token(name, name_length)
    if not name_length:
        return _MALFORMED
    for place in range(name_length):
        if not _IN_NAME[name[place]]:
            return _MALFORMED
    if name_length == 4 and memcmp(name, b"host", 4) == 0:
        return _HOST
    if name_length == 14 and memcmp(name, b"content-length", 14) == 0:
        return _CONTENT_LENGTH
    if name_length == 2 and memcmp(name, b"te", 2) == 0:
        return _OTHER if _is_trailers(value, value_length) else _MALFORMED
    return _MALFORMED if _is_connection_specific(name, name_length) else _OTHER


cdef int _pseudo_token(const uint8_t *name, size_t length) noexcept:
    if length == 5 and memcmp(name, b":path", 5) == 0:
        return _PATH
    if length == 7:
        if memcmp(name, b":method", 7) == 0:
            return _METHOD
        if memcmp(name, b":scheme", 7) == 0:
            return _SCHEME
        if memcmp(name, b":status", 7) == 0:
            return _STATUS
    if length == 10 and memcmp(name, b":authority", 10) == 0:
        return _AUTHORITY
    return _UNKNOWN_PSEUDO


cdef bint _is_connection_specific(const uint8_t *name, size_t length) noexcept:
    if length == 7:
        return memcmp(name, b"upgrade", 7) == 0
    if length == 10:
        return memcmp(name, b"connection", 10) == 0 or memcmp(name, b"keep-alive", 10) == 0
    if length == 16:
        return memcmp(name, b"proxy-connection", 16) == 0
    return length == 17 and memcmp(name, b"transfer-encoding", 17) == 0


cdef bint _is_trailers(const uint8_t *value, size_t length) noexcept:
    cdef const char *wanted = b"trailers"
    cdef size_t place
    if length != 8:
        return False
    for place in range(8):
        if _lower(<char>value[place]) != wanted[place]:
            return False
    return True


cdef bint _is_visible(object text) noexcept:
    """Whether there is at least one octet, and none is a control character or a space."""
    cdef const uint8_t *octets = <const uint8_t *>PyBytes_AS_STRING(text)
    cdef Py_ssize_t place
    for place in range(PyBytes_GET_SIZE(text)):
        if octets[place] <= 0x20 or octets[place] == 0x7F:
            return False
    return PyBytes_GET_SIZE(text) > 0


cdef bint _is_blank(uint8_t octet) noexcept:
    return octet == c" " or octet == c"\t"


cdef char _lower(char octet) noexcept:
    return octet + 32 if c"A" <= octet <= c"Z" else octet

"""The HPACK encoder (RFC 7541), by the rules of `policy.compression`.

libnghttp2 has a compressor. It cannot do what this proxy needs: it puts every line into the dynamic table but those of
eight names, so that ids which differ in every request push the token out after some fifteen of them, and it marks every
`authorization` as never-indexed, whether or not it came so.

A line that is in a table costs 20 ns, because Python keeps the hashes of bytes, and the token, the route's fields
and what the other connection's decoder has kept are the same objects in every request. Where the whole line is the same
object as before, as it is between `check` and `write`, its place is known without a look into the tables.
"""

cdef enum:
    KNOWN_LINES = 256
    KNOWN_WAYS = 4  # places that a line can have
    SEEN_LINES = 256
    CHECKED_LINES = 64

cdef struct Known:
    PyObject *field
    Py_ssize_t number

cdef Py_ssize_t _DEFAULT_TABLE_OCTETS = 4096
cdef Py_ssize_t _MOST_TABLE_OCTETS = compression.MOST_TABLE_OCTETS
cdef Py_ssize_t _STATIC_ENTRIES = 61

cdef dict _STATIC_LINES = {}
cdef dict _STATIC_NAMES = {}


@cython.final
@cython.no_gc
cdef class SectionWriter:
    """The compressor of one connection: sections must leave in the order they are written."""

    cdef dict _lines
    cdef dict _names
    cdef Py_ssize_t _added
    cdef Py_ssize_t _evicted
    cdef Py_ssize_t _octets
    cdef Py_ssize_t _table_octets
    cdef Py_ssize_t _smallest
    cdef Py_ssize_t _told
    cdef uint64_t _seen[SEEN_LINES]
    cdef Known _known[KNOWN_LINES]
    cdef list _checked
    cdef Py_ssize_t _numbers[CHECKED_LINES]

    def __cinit__(self):
        self._lines = {}
        self._names = {}
        self._table_octets = self._told = self._smallest = _DEFAULT_TABLE_OCTETS

    def __dealloc__(self):
        cdef int place
        for place in range(KNOWN_LINES):
            Py_XDECREF(self._known[place].field)

    cdef int check(self, list fields) except -1:
        """Raise ValueError unless `write` can take these fields, so that it never fails half-way."""
        cdef Py_ssize_t place, number
        cdef PyObject *item
        cdef Known *known
        cdef object field
        self._checked = None
        if not PyList_GET_SIZE(fields):
            raise ValueError("a section of no fields must not be sent")
        for place in range(PyList_GET_SIZE(fields)):
            item = PyList_GET_ITEM(fields, place)
            known = &self._known[_known_place(item)]
            if known.field == item and (known.number < 0 or known.number > self._evicted):
                number = known.number
            else:
                number = self._number(<object>item)
            if place < CHECKED_LINES:
                self._numbers[place] = number
            if number:
                continue
            field = <object>item
            if (
                not PyTuple_CheckExact(field)
                or PyTuple_GET_SIZE(field) != 3
                or not PyBytes_CheckExact(<object>PyTuple_GET_ITEM(field, 0))
                or not PyBytes_CheckExact(<object>PyTuple_GET_ITEM(field, 1))
            ):
                raise ValueError("each field must be a tuple of two bytes and a bool")
            if not _sendable(<object>PyTuple_GET_ITEM(field, 0), <object>PyTuple_GET_ITEM(field, 1)):
                raise ValueError("fields that must not be sent: upper case in names, or CR, LF or NUL")
        self._checked = fields
        return 0

    cdef int write(self, list fields, Outbox outbox) except -1:
        """Append the field block of a section that was checked."""
        cdef Py_ssize_t place, index
        cdef object field
        cdef bint checked = self._checked is fields
        cdef char *octets
        self._checked = None
        if self._told != self._table_octets or self._smallest < self._told:
            # The smallest size since the last block must be told as well as the last (RFC 7541, 4.2).
            if self._smallest < min(self._told, self._table_octets):
                _write_integer(outbox, 0x20, 0x1F, self._smallest)
            _write_integer(outbox, 0x20, 0x1F, self._table_octets)
            self._told = self._smallest = self._table_octets
        # Most lines are an octet each: room for all of them is had at once, and given back at the first that is more.
        octets = outbox.room(PyList_GET_SIZE(fields))
        for place in range(PyList_GET_SIZE(fields)):
            index = self._place(self._numbers[place]) if checked and place < CHECKED_LINES else 0
            if not 0 < index < 0x7F:
                break
            octets[place] = <char>(0x80 | index)
        else:
            return 0
        outbox.size -= PyList_GET_SIZE(fields) - place
        for place in range(place, PyList_GET_SIZE(fields)):
            field = <object>PyList_GET_ITEM(fields, place)
            # A line that stands twice in the section is in the table the second time.
            index = self._place(self._numbers[place]) if checked and place < CHECKED_LINES else 0
            if not index:
                index = self._place(self._number(field))
            if 0 < index < 0x7F:
                outbox.room(1)[0] = <char>(0x80 | index)
            elif index:
                _write_integer(outbox, 0x80, 0x7F, index)
            else:
                self._literal(<tuple>field, outbox)
        return 0

    cdef int resize(self, uint32_t octets) except -1:
        """The peer's decoder keeps a table of at most so many octets from now on."""
        self._table_octets = min(<Py_ssize_t>octets, _MOST_TABLE_OCTETS)
        self._smallest = min(self._smallest, self._table_octets)
        return self._evict()

    cdef Py_ssize_t _place(self, Py_ssize_t number) noexcept:
        """Return the index of what `_number` has returned; 0 if the tables do not have it any more."""
        if number <= 0:
            return -number
        if number > self._evicted:
            return _STATIC_ENTRIES + 1 + self._added - number
        return 0

    cdef Py_ssize_t _number(self, object field) except? -1:
        """Return where a line is in the tables: as in `_lines`, or minus the index in the static table; 0 if nowhere.

        Lines leave the dynamic table in the order of their numbers. Only what a table holds is kept in `_known`, so
        that the table bounds what the kept lines hold.
        """
        cdef size_t place = _known_place(<PyObject *>field)
        cdef int way
        cdef Known *known = NULL
        cdef Py_ssize_t number
        cdef PyObject *found
        for way in range(KNOWN_WAYS):
            known = &self._known[place ^ way]
            if known.field == <PyObject *>field:
                number = known.number
                if number < 0 or number > self._evicted:
                    return number
                break
        if not PyTuple_CheckExact(field):
            return 0
        found = PyDict_GetItemWithError(self._lines, field)
        if found != NULL:
            number = <Py_ssize_t><object>found
        else:
            found = PyDict_GetItemWithError(_STATIC_LINES, field)
            if found == NULL:
                return 0
            number = -<Py_ssize_t><object>found
        if known.field != <PyObject *>field:
            # Others move on by a place: three lines of a head that had the same two pushed each other out.
            Py_XDECREF(known.field)
            for way in range(KNOWN_WAYS - 1, 0, -1):
                self._known[place ^ way] = self._known[place ^ (way - 1)]
            known = &self._known[place]
            known.field = <PyObject *>field
            Py_INCREF(field)
        known.number = number
        return number

    cdef int _literal(self, tuple field, Outbox outbox) except -1:
        cdef bytes name = <bytes>PyTuple_GET_ITEM(field, 0)
        cdef bytes value = <bytes>PyTuple_GET_ITEM(field, 1)
        cdef Py_ssize_t octets = PyBytes_GET_SIZE(name) + PyBytes_GET_SIZE(value) + 32
        cdef Py_ssize_t index = 0
        cdef bint add = False
        cdef PyObject *found = PyDict_GetItemWithError(_STATIC_NAMES, name)
        if found != NULL:
            index = <Py_ssize_t><object>found
        else:
            found = PyDict_GetItemWithError(self._names, name)
            if found != NULL:
                index = _STATIC_ENTRIES + 1 + self._added - <Py_ssize_t><object>found
        if <object>PyTuple_GET_ITEM(field, 2):
            _write_integer(outbox, 0x10, 0x0F, index)
        else:
            # A line that would push out half of the table does not enter it.
            if octets * 2 <= self._table_octets:
                add = self._was_seen(<uint64_t>PyObject_Hash(field))
            if add:
                _write_integer(outbox, 0x40, 0x3F, index)
            else:
                _write_integer(outbox, 0x00, 0x0F, index)
        if not index:
            _write_string(outbox, name)
        _write_string(outbox, value)
        return self._add(field, octets) if add else 0

    cdef bint _was_seen(self, uint64_t hash_) noexcept:
        """Return whether a line with this hash was sent lately, and remember it.

        It has four places. With one, two lines of every section that had the same place would be literals for ever.
        """
        cdef size_t first = <size_t>(hash_ % SEEN_LINES) & ~<size_t>3
        cdef size_t place
        for place in range(first, first + 4):
            if self._seen[place] == hash_:
                return True
        for place in range(first + 3, first, -1):
            self._seen[place] = self._seen[place - 1]
        self._seen[first] = hash_
        return False

    cdef int _add(self, tuple field, Py_ssize_t octets) except -1:
        self._added += 1
        self._lines[field] = self._names[field[0]] = self._added
        self._octets += octets
        return self._evict()

    cdef int _evict(self) except -1:
        cdef tuple field
        cdef object number
        while self._octets > self._table_octets:
            field = <tuple>next(iter(self._lines))  # the oldest
            self._evicted += 1
            self._octets -= PyBytes_GET_SIZE(field[0]) + PyBytes_GET_SIZE(field[1]) + 32
            number = self._lines.pop(field)
            if self._names[field[0]] == number:
                del self._names[field[0]]
        return 0


cdef inline size_t _known_place(const PyObject *field) noexcept:
    return ((<uintptr_t>field >> 4) ^ (<uintptr_t>field >> 10)) % KNOWN_LINES


cdef bint _sendable(bytes name, bytes value) noexcept:
    """Whether the line breaks neither the compression nor, in a peer that is careless, the message."""
    cdef const char *octets = PyBytes_AS_STRING(name)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t place
    cdef char octet
    if not length:
        return False
    for place in range(length):
        octet = octets[place]
        if c"A" <= octet <= c"Z" or octet == c"\r" or octet == c"\n" or octet == 0:
            return False
    octets = PyBytes_AS_STRING(value)
    length = PyBytes_GET_SIZE(value)
    return not (
        memchr(octets, c"\r", <size_t>length)
        or memchr(octets, c"\n", <size_t>length)
        or memchr(octets, 0, <size_t>length)
    )


cdef int _write_string(Outbox outbox, bytes text) except -1:
    """RFC 7541, 5.2, without Huffman coding."""
    _write_integer(outbox, 0x00, 0x7F, PyBytes_GET_SIZE(text))
    return outbox.write(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef int _write_integer(Outbox outbox, unsigned int pattern, Py_ssize_t mask, Py_ssize_t number) except -1:
    """RFC 7541, 5.1: the pattern stands in the bits that the mask leaves."""
    cdef unsigned char octets[12]
    cdef int count = 1
    if number < mask:
        octets[0] = <unsigned char>(pattern | <unsigned int>number)
    else:
        octets[0] = <unsigned char>(pattern | <unsigned int>mask)
        number -= mask
        while number >= 0x80:
            octets[count] = <unsigned char>(number & 0x7F | 0x80)
            number >>= 7
            count += 1
        octets[count] = <unsigned char>number
        count += 1
    return outbox.write(octets, count)


cdef int _read_static_table() except -1:
    """Take the table of RFC 7541, appendix A, from the library, so that it stands in no second place."""
    cdef nghttp2_hd_inflater *inflater = NULL
    cdef const nghttp2_nv *line
    cdef Py_ssize_t index
    if nghttp2_hd_inflate_new(&inflater) != 0:
        raise MemoryError
    try:
        for index in range(1, _STATIC_ENTRIES + 1):
            line = nghttp2_hd_inflate_get_table_entry(inflater, <size_t>index)
            name = line.name[: line.namelen]
            value = line.value[: line.valuelen]
            _STATIC_NAMES.setdefault(name, index)
            _STATIC_LINES[name, value, False] = index
    finally:
        nghttp2_hd_inflate_del(inflater)
    return 0


_read_static_table()

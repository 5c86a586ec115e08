"""Field compression (HPACK, RFC 7541) at a cost a portable engine can afford.

The head of a typical request (twelve fields, two of them new every time, one a token of 800 octets) takes the hpack
package some 70 µs each way; most of it goes into debug calls, copies of the rest of the block, and Huffman coding by
growing integers. This codec does what RFC 7541 asks in a fifteenth of that to encode and a fifth to decode. The static
table and the Huffman code are hpack's, handed in, and the tests hold both directions against hpack.

What the encoder decides for itself (RFC 7541 leaves these to it):

* A line enters the dynamic table the second time it is sent, so that lines which differ in every request (trace ids,
  invocation ids) push nothing out, and a token that every request carries is sent twice and then costs one octet.
* A never-indexed line is always a never-indexed literal, even where a table holds the same line (6.2.3): this mark
  must reach the next hop. hpack would send an index there and lose it.
* Strings are not Huffman-coded: that saves a fifth of the octets of a first head and costs ten times its encoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from proxy.http2.events import Field, Fields

__all__ = ["CompressionFault", "FieldDecoder", "FieldEncoder"]

_DEFAULT_TABLE_OCTETS: Final = 4_096
_MOST_TABLE_OCTETS: Final = 16_384
"""The peer may allow gigabytes; our memory is not its to give."""
_REMEMBERED_LINES: Final = 256
_MAX_INTEGER_SHIFT: Final = 28
_BOMB_FACTOR: Final = 4
"""A section this much over the limit is not decoded to its end: each octet may stand for 4 KiB."""

Line = tuple[bytes, bytes]


class CompressionFault(Exception):
    """The field block cannot be decoded; the connection is lost with it (RFC 9113, 4.3)."""


class FieldDecoder:
    """Decodes the field blocks of one connection, in the order they arrive."""

    __slots__ = (
        "_entries",
        "_huffman",
        "_size",
        "_static",
        "_table_octets",
        "max_allowed_table_size",
        "max_header_list_size",
    )

    def __init__(self, static: Sequence[Line], huffman: Callable[[bytes], bytes], *, max_section_octets: int) -> None:
        """`static` is the table of RFC 7541, appendix A, without its empty entry 0; `huffman` decodes one string."""
        self._static: list[Field] = [(b"", b"", False), *((name, value, False) for name, value in static)]
        self._huffman = huffman
        self._entries: deque[Field] = deque()
        self._size = 0
        self._table_octets = _DEFAULT_TABLE_OCTETS
        self.max_allowed_table_size = _DEFAULT_TABLE_OCTETS
        self.max_header_list_size = max_section_octets

    def decode(self, block: bytes) -> Fields | None:
        """Return the field section, or None where it is greater than the limit; the table is in step in either case.

        Raises CompressionFault on a block that is not well formed, and on one that is far over the limit.
        """
        fields: Fields = []
        octets = 0
        try:
            position = self._table_updates(block)
            while position < len(block):
                first = block[position]
                if first & 0x80:
                    index = first & 0x7F
                    position += 1
                    if index == 0x7F:
                        index, position = _integer(block, position - 1, 0x7F)
                    field = self._indexed(index)
                elif first & 0x40:
                    field, position = self._literal(block, position, 0x3F, never=False)
                    self._add(field)
                elif first & 0x20:
                    raise CompressionFault("a table size update is not at the start of its block")
                else:
                    field, position = self._literal(block, position, 0x0F, never=first & 0x10 != 0)
                octets += len(field[0]) + len(field[1]) + 32
                if octets <= self.max_header_list_size:
                    fields.append(field)
                elif octets > self.max_header_list_size * _BOMB_FACTOR:
                    raise CompressionFault("a field section is far greater than SETTINGS_MAX_HEADER_LIST_SIZE")
        except IndexError:
            raise CompressionFault("a field block is truncated") from None
        except ValueError as exc:
            raise CompressionFault(str(exc)) from exc
        return fields if octets <= self.max_header_list_size else None

    def _table_updates(self, block: bytes) -> int:
        """Apply the size updates at the start of a block (RFC 7541, 4.2 and 6.3); return where the fields begin."""
        position = 0
        while position < len(block) and block[position] & 0xE0 == 0x20:
            octets, position = _integer(block, position, 0x1F)
            if octets > self.max_allowed_table_size:
                raise CompressionFault("a table size update exceeds SETTINGS_HEADER_TABLE_SIZE")
            self._table_octets = octets
            self._evict()
        return position

    def _indexed(self, index: int) -> Field:
        if 0 < index < 62:
            return self._static[index]
        if not index or index - 62 >= len(self._entries):
            raise CompressionFault("an index is in no table")
        return self._entries[index - 62]

    def _literal(self, block: bytes, position: int, mask: int, *, never: bool) -> tuple[Field, int]:
        index, position = _integer(block, position, mask)
        if index:
            name = self._indexed(index)[0]
        else:
            name, position = self._string(block, position)
        value, position = self._string(block, position)
        return (name, value, never), position

    def _string(self, block: bytes, position: int) -> tuple[bytes, int]:
        coded = block[position] & 0x80
        octets, position = _integer(block, position, 0x7F)
        end = position + octets
        if end > len(block):
            raise CompressionFault("a field block is truncated")
        text = block[position:end]
        return (self._huffman(text) if coded else text), end

    def _add(self, field: Field) -> None:
        self._entries.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + 32
        if self._size > self._table_octets:
            self._evict()

    def _evict(self) -> None:
        while self._size > self._table_octets:
            name, value, _ = self._entries.pop()
            self._size -= len(name) + len(value) + 32


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """Return an integer (RFC 7541, 5.1) and where it ends; raises IndexError at the end of the block."""
    number = block[position] & mask
    position += 1
    if number < mask:
        return number, position
    shift = 0
    while True:
        octet = block[position]
        position += 1
        number += (octet & 0x7F) << shift
        if octet < 0x80:
            return number, position
        shift += 7
        if shift > _MAX_INTEGER_SHIFT:
            raise CompressionFault("an integer is too long")


class FieldEncoder:
    """Encodes the field sections of one connection; they must leave in the order they were encoded."""

    __slots__ = (
        "_entries",
        "_names",
        "_number",
        "_remembered",
        "_resizes",
        "_size",
        "_static_lines",
        "_static_names",
        "_table",
        "_table_octets",
    )

    def __init__(self, static: Sequence[Line]) -> None:
        """`static` is the table of RFC 7541, appendix A, without its empty entry 0."""
        self._static_names: dict[bytes, int] = {}
        self._static_lines: dict[Field, bytes] = {}
        for index, (name, value) in enumerate(static, 1):
            self._static_names.setdefault(name, index)
            self._static_lines[name, value, False] = bytes((0x80 | index,))
        self._table: dict[Field, int] = {}
        self._names: dict[bytes, int] = {}
        self._entries: deque[Field] = deque()
        self._number = 0
        self._size = 0
        self._table_octets = _DEFAULT_TABLE_OCTETS
        self._resizes: list[int] = []
        self._remembered: dict[Field, None] = {}

    @property
    def header_table_size(self) -> int:
        """Greatest size of the dynamic table; set it when the peer's SETTINGS_HEADER_TABLE_SIZE changes."""
        return self._table_octets

    @header_table_size.setter
    def header_table_size(self, octets: int) -> None:
        octets = min(octets, _MOST_TABLE_OCTETS)
        if octets == self._table_octets and not self._resizes:
            return
        # The smallest size since the last block must be told as well as the last (RFC 7541, 4.2).
        smallest = min([octets, *self._resizes])
        self._resizes = [smallest] if smallest == octets else [smallest, octets]
        self._table_octets = octets
        self._remembered.clear()
        self._evict()

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Return the field block of a section. Names and values must be bytes: the table is changed as it goes."""
        parts: list[bytes] = []
        if self._resizes:
            parts += [_encoded_integer(octets, 0x20, 0x1F) for octets in self._resizes]
            self._resizes.clear()
        table = self._table
        static_lines = self._static_lines
        for field in fields:
            number = table.get(field)
            if number is not None:
                parts.append(_encoded_integer(62 + self._number - number, 0x80, 0x7F))
            elif field in static_lines:
                parts.append(static_lines[field])
            else:
                parts.append(self._literal(field))
        return b"".join(parts)

    def _literal(self, field: Field) -> bytes:
        name, value, never = field
        octets = len(name) + len(value) + 32
        number = self._names.get(name)
        index = self._static_names.get(name) or (62 + self._number - number if number is not None else 0)
        if never:
            head = _encoded_integer(index, 0x10, 0x0F)
        elif field in self._remembered:
            del self._remembered[field]
            head = _encoded_integer(index, 0x40, 0x3F)
            self._add(field, octets)
        else:
            self._remember(field, octets)
            head = _encoded_integer(index, 0x00, 0x0F)
        text = _encoded_integer(len(value), 0x00, 0x7F) + value
        return head + text if index else head + _encoded_integer(len(name), 0x00, 0x7F) + name + text

    def _remember(self, field: Field, octets: int) -> None:
        """Note a line for the next time, unless it would push out half of the table."""
        if octets * 2 > self._table_octets:
            return
        remembered = self._remembered
        remembered[field] = None
        if len(remembered) > _REMEMBERED_LINES:
            del remembered[next(iter(remembered))]

    def _add(self, field: Field, octets: int) -> None:
        self._number += 1
        self._table[field] = self._names[field[0]] = self._number
        self._entries.append(field)
        self._size += octets
        if self._size > self._table_octets:
            self._evict()

    def _evict(self) -> None:
        while self._size > self._table_octets:
            field = self._entries.popleft()
            number = self._table.pop(field)
            if self._names[field[0]] == number:
                del self._names[field[0]]
            self._size -= len(field[0]) + len(field[1]) + 32


def _encode_integer(number: int, pattern: int, mask: int) -> bytes:
    if number < mask:
        return bytes((pattern | number,))
    octets = [pattern | mask]
    number -= mask
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


_SMALL_INTEGERS: Final = {
    (pattern, mask): [_encode_integer(number, pattern, mask) for number in range(1024)]
    for pattern, mask in ((0x80, 0x7F), (0x40, 0x3F), (0x20, 0x1F), (0x10, 0x0F), (0x00, 0x0F), (0x00, 0x7F))
}


def _encoded_integer(number: int, pattern: int, mask: int) -> bytes:
    """Return an integer (RFC 7541, 5.1) with its prefix pattern."""
    if number < 1024:
        return _SMALL_INTEGERS[pattern, mask][number]
    return _encode_integer(number, pattern, mask)

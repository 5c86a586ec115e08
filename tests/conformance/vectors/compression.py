"""Lines sent one after the other, each in a request of its own, and how each leaves (`policy.compression`)."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from proxy.http2.events import FieldLine

__all__ = ["INDEXED", "NEVER", "PLAIN", "TABLE", "Line", "Sequence"]

Line: TypeAlias = Literal["indexed field", "never-indexed literal", "literal", "literal that enters the table"]

INDEXED: Line = "indexed field"
"""RFC 7541, 6.1."""
NEVER: Line = "never-indexed literal"
"""6.2.3."""
PLAIN: Line = "literal"
"""6.2.2."""
TABLE: Line = "literal that enters the table"
"""6.2.1."""


class Sequence(NamedTuple):
    """What is sent on one connection, whose peer offers a table of so many octets."""

    name: str
    lines: list[tuple[FieldLine, Line]]
    table_octets: int = 4_096


_TOKEN: FieldLine = (b"x-token", b"t" * 900, False)
_STATIC: FieldLine = (b"accept-encoding", b"gzip, deflate", False)


def _never(line: FieldLine) -> FieldLine:
    return line[0], line[1], True


SEQUENCES = [
    Sequence("a line sent again and again", [(_TOKEN, PLAIN), (_TOKEN, TABLE), (_TOKEN, INDEXED), (_TOKEN, INDEXED)]),
    Sequence("a line of the static table", [(_STATIC, INDEXED), (_STATIC, INDEXED)]),
    Sequence("a never-indexed line", [(_never(_TOKEN), NEVER)] * 3),
    Sequence("a never-indexed line of the static table", [(_never(_STATIC), NEVER)] * 2),
    Sequence(
        "a never-indexed line that is in the table",
        [(_TOKEN, PLAIN), (_TOKEN, TABLE), (_never(_TOKEN), NEVER), (_TOKEN, INDEXED)],
    ),
    Sequence("a never-indexed line is not remembered", [(_never(_TOKEN), NEVER), (_TOKEN, PLAIN), (_TOKEN, TABLE)]),
    Sequence("names that are in a table", [((b"accept", b"%d" % number, False), PLAIN) for number in range(3)]),
    Sequence("a line of half the table", [((b"x", b"y" * 2_015, False), PLAIN), ((b"x", b"y" * 2_015, False), TABLE)]),
    Sequence("a line of more than half the table", [((b"x", b"y" * 2_016, False), PLAIN)] * 3),
    Sequence("no table", [(_TOKEN, PLAIN)] * 3, table_octets=0),
    Sequence("a small table", [((b"x", b"y" * 15, False), PLAIN)] * 3, table_octets=95),
    Sequence(
        "a table greater than we use",
        [
            ((b"x", b"y" * 8_159, False), PLAIN),
            ((b"x", b"y" * 8_159, False), TABLE),
            ((b"x", b"y" * 8_160, False), PLAIN),
            ((b"x", b"y" * 8_160, False), PLAIN),
        ],
        table_octets=1 << 20,
    ),
]

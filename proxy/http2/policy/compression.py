"""Which field lines enter HPACK's dynamic table (RFC 7541 leaves it to the encoder).

==================================  ==============================================  ===========================
line                                is sent as                                      enters the table
==================================  ==============================================  ===========================
never indexed                       never-indexed literal (6.2.3), also where a     no
                                    table holds the same line: the mark must
                                    reach the next hop
in a table                          indexed field (6.1)                             it is there
more than half of the table         literal without indexing (6.2.2)                no: it pushes out too much
sent for the first time             literal without indexing (6.2.2)                no
sent again                          literal with incremental indexing (6.2.1)       yes
==================================  ==============================================  ===========================

So lines that differ in every request (trace ids, invocation ids) push nothing out, and a token that every request
carries is sent twice and then costs an octet. Strings are not Huffman-coded: that saves a fifth of the octets of a
first head and costs ten times its encoding.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_TABLE_OCTETS", "REMEMBERED_LINES", "SentLines"]

MOST_TABLE_OCTETS: Final = 16_384
"""The peer may allow gigabytes; our memory is not its to give."""
REMEMBERED_LINES: Final = 256
"""Lines noted for the next time. An engine may forget one earlier, which costs one literal more and breaks nothing."""


class SentLines:
    """The lines that were sent once on a connection."""

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes: dict[int, None] = {}

    def is_repeated(self, name: bytes, value: bytes, table_octets: int) -> bool:
        """Return True if a line that is in no table enters the table now; otherwise remember it."""
        if (len(name) + len(value) + 32) * 2 > table_octets:
            return False
        line = hash((name, value))
        if line in self._hashes:
            del self._hashes[line]
            return True
        self._hashes[line] = None
        if len(self._hashes) > REMEMBERED_LINES:
            del self._hashes[next(iter(self._hashes))]
        return False

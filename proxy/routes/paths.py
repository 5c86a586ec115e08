"""Paths that could mean another path. Pure."""

from __future__ import annotations

import re
from typing import Final

from proxy.errors import PathRefused

__all__ = ["AMBIGUOUS_PATH", "check_path"]

AMBIGUOUS_PATH: Final = re.compile(rb"//|/\.{1,2}(?:[/;]|$)|%2[ef]|%5c|%00|[^!-~]|[\\#]", re.IGNORECASE)
"""Matches paths that some component on the way could normalise into another path.

These are dot segments and their encodings, doubled, encoded or backward slashes (RFC 3986, 5.2.4 and 6.2.2), and octets
that no path may hold (RFC 3986, 3.3). Servlet containers drop `;…` from a segment first, so that `..;` is one of them.
"""


def check_path(path: bytes) -> None:
    """Raise PathRefused for a path (with query) that could mean another one once normalised, or that is none."""
    bare = path.partition(b"?")[0]
    if not bare.startswith(b"/") or AMBIGUOUS_PATH.search(bare):
        raise PathRefused(
            "this path is not forwarded: it has dot segments, doubled, backward or encoded slashes, "
            "or octets that a path may not hold"
        )

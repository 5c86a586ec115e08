"""Paths that could mean another path. Pure."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["AMBIGUOUS_PATH"]

AMBIGUOUS_PATH: Final = re.compile(rb"//|/\.{1,2}(?:[/;]|$)|%2[ef]|%5c|%00|[^!-~]|[\\#]", re.IGNORECASE)
"""Matches paths that some component on the way could normalise into another path.

These are dot segments and their encodings, doubled, encoded or backward slashes (RFC 3986, 5.2.4 and 6.2.2), and octets
that no path may hold (RFC 3986, 3.3). Servlet containers drop `;…` from a segment first, so that `..;` is one of them.
"""

"""Removes possible secrets from click's error messages.

click quotes what it does not understand: a flag, an argument, a value of the wrong type. Any of them may be a token or
key that was pasted into the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from proxy.quoting import NOT_SHOWN, plain

__all__ = ["redact"]

_FLAG: Final = re.compile(r"-{1,2}[a-z-]{1,40}=")

# A shorter text is no secret, and occurs in many words.
_LEAST_CHARACTERS: Final = 5


def redact(message: str, arguments: Iterable[str]) -> str:
    """Return the message with every argument and flag value replaced that may be a secret (see `quoting`)."""
    for text in sorted(set(_spellings(arguments)), key=len, reverse=True):
        message = message.replace(text, NOT_SHOWN)
    return message


def _spellings(arguments: Iterable[str]) -> Iterator[str]:
    """Yield every spelling in which a message may have what must not be quoted."""
    for argument in arguments:
        for text in (argument, argument.partition("=")[0], _FLAG.sub("", argument, count=1)):
            if len(text) >= _LEAST_CHARACTERS and plain(text) is None:
                yield text
                yield repr(text)[1:-1]

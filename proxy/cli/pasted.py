"""What click says of a command line, without what somebody pasted into it.

click quotes what it does not understand: a flag, an argument, a value of the wrong type. It need not be what was meant
to stand there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from proxy.quoting import NOT_SHOWN, plain

__all__ = ["without_pasted"]

_FLAG: Final = re.compile(r"-{1,2}[a-z-]{1,40}=")

# A shorter one would be found everywhere, and is no secret.
_LEAST_CHARACTERS: Final = 5


def without_pasted(message: str, arguments: Iterable[str]) -> str:
    """Return the message without the arguments, and values of flags, that may not be quoted (`quoting`)."""
    for text in sorted(set(_spelled(arguments)), key=len, reverse=True):
        message = message.replace(text, NOT_SHOWN)
    return message


def _spelled(arguments: Iterable[str]) -> Iterator[str]:
    """Every spelling in which a message could hold what may not be quoted."""
    for argument in arguments:
        for text in (argument, argument.partition("=")[0], _FLAG.sub("", argument, count=1)):
            if len(text) >= _LEAST_CHARACTERS and plain(text) is None:
                yield text
                yield repr(text)[1:-1]

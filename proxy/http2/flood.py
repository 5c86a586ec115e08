"""How much a peer may trouble one connection without getting anything done.

HTTP/2 lets a peer ask for work that costs it next to nothing: streams opened and cancelled (CVE-2023-44487), streams
that we are made to reset (CVE-2025-8671), PING, SETTINGS, empty DATA, PRIORITY and window updates without end
(CVE-2019-9512 to -9518). Each such frame spends from an account; what a well-behaved peer does earns into it. There is
no clock in here, so neither the age of a connection nor a slow rate counts against anybody:

* `resets`: a stream that was cancelled before we answered it, or that we had to reset, costs 1; a stream answered
  earns 1. So a client may for ever cancel one stream for each it lets finish, and 1,000 at any moment.
* `chatter`: frames that change nothing for any exchange. Every read of the socket earns 16 (a packet costs its sender
  something too), so that a PING every 40 s passes for years while a packet stuffed with PINGs spends more than it
  brings; heads and DATA, in either direction, earn as well, because window updates and PINGs that probe the bandwidth
  come with them.

Each method returns False once an account is overdrawn: the connection is to end with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CONTENT_EARNS",
    "EMPTY_DATA_COSTS",
    "HEAD_EARNS",
    "MOST_CHATTER",
    "MOST_RESETS",
    "READ_EARNS",
    "SETTINGS_COST",
    "Allowance",
]

MOST_RESETS: Final = 1_000
"""What the account of resets holds."""
MOST_CHATTER: Final = 2_000
"""What the account of chatter holds."""
READ_EARNS: Final = 16
"""A read of the socket."""
HEAD_EARNS: Final = 16
"""A well-formed head."""
CONTENT_EARNS: Final = 4
"""A frame, and a KiB: receivers commonly send two window updates for every 4 KiB."""
EMPTY_DATA_COSTS: Final = 4
"""DATA without content that does not end its stream."""
SETTINGS_COST: Final = 20
"""More than a read earns: one SETTINGS may touch every stream of the connection."""


class Allowance:
    """The accounts of one connection; both are full at its start."""

    __slots__ = ("_chatter", "_resets")

    def __init__(self) -> None:
        self._resets = MOST_RESETS
        self._chatter = MOST_CHATTER

    # ---- earning

    def read(self) -> None:
        """Bytes were read from the socket."""
        self._chatter = min(MOST_CHATTER, self._chatter + READ_EARNS)

    def head(self) -> None:
        """A well-formed head came in."""
        self._chatter = min(MOST_CHATTER, self._chatter + HEAD_EARNS)

    def content(self, octets: int, *, frames: int = 1) -> None:
        """Content came in or went out, in so many DATA frames at least."""
        self._chatter = min(MOST_CHATTER, self._chatter + CONTENT_EARNS * (frames + (octets >> 10)))

    def answered(self) -> None:
        """A final response head went out: the peer let a stream live that long."""
        if self._resets < MOST_RESETS:
            self._resets += 1

    # ---- spending

    def cancelled(self) -> bool:
        """The peer cancelled a stream before we answered, or made us reset or refuse one."""
        self._resets -= 1
        return self._resets >= 0

    def idle_frame(self) -> bool:
        """A frame that moves no exchange: PING, PRIORITY, WINDOW_UPDATE, unknown types, frames of finished streams."""
        self._chatter -= 1
        return self._chatter >= 0

    def empty_data(self) -> bool:
        """DATA without content that does not end its stream."""
        self._chatter -= EMPTY_DATA_COSTS
        return self._chatter >= 0

    def settings(self) -> bool:
        """SETTINGS that we have to apply and to acknowledge."""
        self._chatter -= SETTINGS_COST
        return self._chatter >= 0

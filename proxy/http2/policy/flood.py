"""Limits on control frames, resets and late content of one connection that serve no exchange.

HTTP/2 lets a peer ask for work that costs it next to nothing: streams opened and cancelled (CVE-2023-44487), streams
that we are made to reset (CVE-2025-8671), PING, SETTINGS, empty DATA, PRIORITY and window updates without end
(CVE-2019-9512 to -9518). Each such frame is charged to an account; what a well-behaved peer does is credited to it.
No clock is read: neither the age of a connection nor a slow rate is charged.

* `resets`: a stream that was cancelled before we answered it, or that we had to reset, is charged 1; a stream that was
  answered is credited 1. So a client may for ever cancel one stream for each it lets finish, and 1,000 at any moment.
* `control_frames`: frames that change nothing for any exchange. Every read of the socket is credited 16 (a packet costs
  its sender something too), so that a PING every 40 s passes for years while a packet stuffed with PINGs is charged
  more than it brings; heads and DATA, in either direction, are credited as well, because window updates and PINGs that
  probe the bandwidth come with them.
* `late_octets`: content on streams that are over, because it crossed our reset, is charged by its octets. Each stream,
  and each reset, is credited a stream's window, which is all that may have been on its way.

Each `charge_…` method raises ConnectionFault once an account is overdrawn: the connection ends with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from typing import Final

from proxy.http2.events import ErrorCode
from proxy.http2.policy.faults import ConnectionFault

__all__ = ["FloodGuard"]

MOST_RESETS: Final = 1_000
"""What the account of resets contains at most."""
MOST_CONTROL_FRAMES: Final = 2_000
"""What the account of control frames contains at most."""
MOST_LATE_OCTETS: Final = 32 << 20
"""What the account of late octets contains at most: twice a connection's window."""
READ_CREDIT: Final = 16
"""For a read of the socket."""
HEAD_CREDIT: Final = 17
"""For a well-formed head: what its HEADERS were charged, and 16."""
CONTENT_CREDIT: Final = 4
"""For a frame, and for a KiB: receivers commonly send two window updates for every 4 KiB."""
EMPTY_DATA_CHARGE: Final = 4
"""For DATA without content that does not end its stream."""
SETTINGS_CHARGE: Final = 20
"""More than the credit of a read: one SETTINGS may touch every stream of the connection."""


class FloodGuard:
    """The accounts of one connection, full at its start; `stream_window_octets` is what we offer for a stream."""

    __slots__ = ("_control_frames", "_late_octets", "_resets", "_stream_window_octets")

    def __init__(self, stream_window_octets: int) -> None:
        self._resets = MOST_RESETS
        self._control_frames = MOST_CONTROL_FRAMES
        self._late_octets = MOST_LATE_OCTETS
        self._stream_window_octets = stream_window_octets

    # ---- credit

    def credit_read(self) -> None:
        """Octets were read from the socket."""
        self._control_frames = min(MOST_CONTROL_FRAMES, self._control_frames + READ_CREDIT)

    def credit_head(self) -> None:
        """A well-formed head came in."""
        self._control_frames = min(MOST_CONTROL_FRAMES, self._control_frames + HEAD_CREDIT)
        self._late_octets = min(MOST_LATE_OCTETS, self._late_octets + self._stream_window_octets)

    def credit_content(self, octets: int, frames: int) -> None:
        """Content came in or went out, in so many DATA frames."""
        credit = CONTENT_CREDIT * (frames + (octets >> 10))
        self._control_frames = min(MOST_CONTROL_FRAMES, self._control_frames + credit)

    def credit_live_content(self, octets: int) -> None:
        """Content that `charge_late_content` was told of is for a live stream."""
        self._late_octets += octets

    def credit_response(self) -> None:
        """A final response head came or left: the client let a stream live that long."""
        self._resets = min(MOST_RESETS, self._resets + 1)

    # ---- charges

    def charge_reset(self) -> None:
        """The peer cancelled a stream before we answered, or made us reset or refuse one."""
        self._resets -= 1
        self._late_octets = min(MOST_LATE_OCTETS, self._late_octets + self._stream_window_octets)
        if self._resets < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")

    def charge_control_frame(self) -> None:
        """HEADERS, or a frame that moves no exchange: PING, WINDOW_UPDATE, PRIORITY, unknown types, late frames."""
        self._charge(1)

    def charge_empty_data(self) -> None:
        """DATA without content that does not end its stream."""
        self._charge(EMPTY_DATA_CHARGE)

    def charge_late_content(self, octets: int) -> None:
        """DATA on a stream that is over, or may be (`credit_live_content`)."""
        self._late_octets -= octets
        if self._late_octets < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too much content on streams that were reset")

    def charge_settings(self) -> None:
        """SETTINGS that we have to apply and to acknowledge."""
        self._charge(SETTINGS_CHARGE)

    def _charge(self, cost: int) -> None:
        self._control_frames -= cost
        if self._control_frames < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames to no effect")

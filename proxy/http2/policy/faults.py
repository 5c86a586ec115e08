"""What the peer did wrong: a fault ends a stream or the connection."""

from __future__ import annotations

__all__ = ["ConnectionFault", "StreamFault"]


class _Fault(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ConnectionFault(_Fault):
    """The peer broke a rule of the connection, which is to end with this error code (RFC 9113, 5.4.1)."""


class StreamFault(_Fault):
    """The peer broke a rule of one stream, which is to be reset with this error code (RFC 9113, 5.4.2).

    `reason` is one of `refusals`.
    """

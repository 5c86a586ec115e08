"""What ends a connection."""

from __future__ import annotations

__all__ = ["ConnectionFault"]


class ConnectionFault(Exception):
    """The peer broke a rule of the connection, which is to end with this error code (RFC 9113, 5.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

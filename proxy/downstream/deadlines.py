"""How long clients may take: for a first request, for a field section, for the content of an HTTP/1.1 request.

A stream may be silent for as long as it likes, and so may a connection on which there was a request: Restate keeps both
for many minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ContentClock", "Deadlines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds, and octets a second."""

    first_request_seconds: float = 60.0
    """How long a connection may be without a request from its beginning on."""
    head_seconds: float = 30.0
    """How long a field section may take from its first octet to its last."""
    content_octets_per_second: int = 500
    """Least rate of the content of an HTTP/1.1 request; 0 for any."""

    @property
    def sweep_seconds(self) -> float:
        """How often connections are looked at: they are late by an eighth at most."""
        return max(0.05, min(self.first_request_seconds, self.head_seconds) / 8)


class ContentClock:
    """The time that one client takes to send the content of a request; what the sidecar does not read costs none.

    `Deadlines.head_seconds` are free. All octets so far count, so that a client may pause after it has sent much.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._spent_seconds = 0.0
        self._octets = 0

    def seconds_left(self) -> float | None:
        """Return how long the next octets may take; None for any time."""
        rate = self._deadlines.content_octets_per_second
        if not rate:
            return None
        return max(0.0, self._deadlines.head_seconds + self._octets / rate - self._spent_seconds)

    def add(self, octets: int, seconds: float) -> None:
        """Note that so many octets have come, for which the sidecar has waited so long."""
        self._octets += octets
        self._spent_seconds += seconds

    def restart(self) -> None:
        """The next content is that of another request."""
        self._spent_seconds = 0.0
        self._octets = 0

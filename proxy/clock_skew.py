"""How far the clock of this machine is from another one, as the `date` of an HTTP answer shows it. Pure.

A skew is in seconds, positive where this machine's clock is ahead.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["MAX_SKEW_SECONDS", "NEGLIGIBLE_SKEW_SECONDS", "direction", "read_date", "skew_in_words", "skew_seconds"]

NEGLIGIBLE_SKEW_SECONDS: Final = 30.0
"""A skew of the token endpoint's clock up to this changes nothing: a token is not used in its last minute anyway."""

MAX_SKEW_SECONDS: Final = 60.0
"""Restate's signature on a request is good for a minute either way; Google allows tokens some seconds only."""


def read_date(value: str | None) -> float | None:
    """Return a `date` field's time in seconds since the epoch (RFC 9110, 6.6.1); None without one, or a bad one."""
    if not value:
        return None
    try:
        date = parsedate_to_datetime(value)
        # Without a zone, it is in UTC (RFC 9110, 5.6.7: `asctime-date`), which Python takes for local time.
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def skew_seconds(date: str | None, now: float) -> float | None:
    """Return how far `now` is ahead of a `date` field; None where that does not tell."""
    there = read_date(date)
    return None if there is None else now - there


def direction(skew: float) -> str:
    """Return `ahead` or `behind`."""
    return "ahead" if skew > 0 else "behind"


def skew_in_words(skew: float, whose: str = "") -> str:
    """Return `the clock of this machine is 95 s ahead`, with `whose` clock it is compared to: `… ahead of Google's`."""
    compared = f" {'of ' if skew > 0 else ''}{whose}" if whose else ""
    return f"the clock of this machine is {abs(skew):.0f} s {direction(skew)}{compared}"

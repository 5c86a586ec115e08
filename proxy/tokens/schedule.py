"""When a token may be used, and when to mint again. Pure: time and random numbers are arguments.

::

    minted ─────────────── usable ───────────────┬─ refreshed in the background ─┬─ stop ─┬─ exp
                                            exp − 225 s                     exp − 60 s    │
                                          (+ up to 30 s)                    not used any more

A metadata server returns the same token until 4 to 5 minutes before it expires, so a refresh earlier than exp − 225 s
brings nothing new, and any remaining life down to 4 minutes is normal. Use stops early because Cloud Run's clock may
differ from this machine's.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "EXPIRY_MARGIN_SECONDS",
    "PERMANENT_SECONDS",
    "UNCHANGED_SECONDS",
    "idle_check_in",
    "refresh_in",
    "retry_in",
    "usable_seconds",
]

EXPIRY_MARGIN_SECONDS: Final = 60.0
"""A token is not used in its last minute (as Restate does not)."""

UNCHANGED_SECONDS: Final = 10.0
"""Least wait before a refresh after one that returned the same token."""

PERMANENT_SECONDS: Final = 30.0
"""How long a permanent failure is remembered, and the longest back-off of a transient one."""

_LEAD_SECONDS: Final = 165.0
_JITTER_SECONDS: Final = 30.0
_FIRST_RETRY_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 10.0
_LEAST_SECONDS: Final = 0.5


def usable_seconds(expires_at: float, now: float) -> float:
    """Return for how many seconds more the token may be used; 0 or less means not at all."""
    return expires_at - EXPIRY_MARGIN_SECONDS - now


def refresh_in(usable: float, random_fraction: float) -> float:
    """Return in how many seconds to refresh a token that stays usable for `usable` seconds more.

    That is exp − 225 s plus up to 30 s by `random_fraction` in [0, 1). A token that lives shorter is refreshed, and
    spread, in proportion: in the second half of its usable life, so that no request waits at its end.
    """
    lead = min(_LEAD_SECONDS, usable / 2)
    return usable - lead + random_fraction * lead * (_JITTER_SECONDS / _LEAD_SECONDS)


def idle_check_in(usable: float) -> float:
    """Return in how many seconds to check again whether an unused token was used, before it expires."""
    return max(_LEAST_SECONDS, min(_IDLE_SECONDS, usable / 2))


def retry_in(failures: int, *, transient: bool, random_fraction: float) -> float:
    """Return how many seconds the last of `failures` failures in a row (≥ 1) is remembered before the next mint.

    For a transient failure 1, 2, 4 … 30 s, less up to a half by `random_fraction` in [0, 1); for others 30 s.
    """
    if not transient:
        return PERMANENT_SECONDS
    return min(PERMANENT_SECONDS, _FIRST_RETRY_SECONDS * (1 << min(failures - 1, 10))) * (1 - random_fraction / 2)

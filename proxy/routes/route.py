"""One route: an upstream, how to reach it, and whose token it gets. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from proxy.quoting import holds_credential, quoted
from proxy.routes.origin import Origin

__all__ = ["OTHER", "UNMATCHED", "Route", "check_name"]

_NAME: Final = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")

UNMATCHED: Final = "(unmatched)"
"""The label in metrics of exchanges without a route; no route can have this name."""


OTHER: Final = "(other)"
"""The shared label in metrics of open routes beyond a number of hosts; no route can have this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One upstream, how to reach it, and who we are there."""

    name: str
    """The path prefix without slashes at its ends; `""` takes every path. The name of an open route is its origin."""
    origin: Origin
    """Where requests are sent."""
    base_path: str = ""
    """`""` or `/…` without a slash at its end; stands where the prefix stood."""
    signed: bool = True
    """Whether a token is added. Without one the request is only passed on."""
    audience: str = ""
    """The token's `aud`; `""` means the origin."""
    impersonate: str | None = None
    """Account that the token is made out to; None for the ambient identity."""
    delegates: tuple[str, ...] = ()
    """Accounts between the ambient identity and `impersonate`, nearest first."""
    is_open: bool = False
    """Whether a deployment has named it, not the settings."""
    shared_label: str = ""
    """Its name in metrics where it shares one with other routes; `""` otherwise."""
    authority: bytes = field(init=False)
    """`:authority` of upstream requests."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "authority", self.origin.authority.encode())
        if not self.audience:
            object.__setattr__(self, "audience", str(self.origin))

    @property
    def label(self) -> str:
        """Its name in metrics, where an empty one would tell nothing; no other named route can have it."""
        return self.shared_label or self.name or "/"


def check_name(name: str) -> str:
    """Return `name`; ValueError with a sentence unless it can be a path prefix of its own."""
    if name and not _NAME.fullmatch(name):
        raise ValueError(
            f"a route name is a path prefix: segments of letters, digits and . _ ~ - joined by single slashes, "
            f"no segment beginning with a dot; {quoted(name)} is not"
        )
    if holds_credential(name):
        raise ValueError(f"a route name is a path prefix, which everybody may see; this is {quoted(name)}")
    return name

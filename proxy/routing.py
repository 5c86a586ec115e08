"""Which upstream a request goes to. Pure.

A route's name is its path prefix, one or more segments: `/greeter/discover` belongs to the route `greeter`, and goes to
the route's URL with the prefix replaced by the URL's own base path. The longest prefix wins; a route named `""` takes
what is left.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from proxy.errors import PathRefused, RouteNotFound
from proxy.quoting import holds_credential, plain, quoted

__all__ = ["UNMATCHED", "Match", "Origin", "Route", "RouteTable", "check_name", "parse_upstream"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")

_AUTHORITY: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:%]+)(?::[0-9]*)?")

_NAME: Final = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")

# What some component on the way could normalise into another path: dot segments and their encodings, doubled,
# encoded or backward slashes (RFC 3986, 5.2.4 and 6.2.2), and octets that no path may hold (RFC 3986, 3.3). Servlet
# containers drop `;…` from a segment first, so that `..;` is one of them.
_REFUSED: Final = re.compile(rb"//|/\.{1,2}(?:[/;]|$)|%2[ef]|%5c|%00|[^!-~]|[\\#]", re.IGNORECASE)


# What the answer to a path without a route shows.
_MOST_SHOWN: Final = 10
_MOST_SHOWN_OCTETS: Final = 1_000
_NEIGHBOURS: Final = 8
"""On either side; twice as many are compared as are shown."""


UNMATCHED: Final = "(unmatched)"
"""What stands in metrics for the route of exchanges that had none; no route can have this name."""


class Origin(NamedTuple):
    """Scheme, host and port of an upstream (RFC 9110, 4.3.1); `host` has no brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """`host` or `host:port`, IPv6 in brackets, a default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_private(self) -> bool:
        """Whether the host is loopback or private by its name or address, without asking DNS."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        # `::ffff:8.8.8.8` is 8.8.8.8, but older Pythons call the whole of ::ffff:0:0/96 private.
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_private or address.is_link_local

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One upstream, how to reach it, and who we are there."""

    name: str
    """The path prefix without slashes at its ends; `""` takes every path."""
    origin: Origin
    base_path: str = ""
    """`""` or `/…` without a slash at its end; stands where the prefix stood."""
    signed: bool = True
    """Whether a token is added. Without one the request is only passed on."""
    audience: str = ""
    """The token's `aud`; `""` means the origin."""
    impersonate: str | None = None
    delegates: tuple[str, ...] = ()
    authority: bytes = field(init=False)
    """`:authority` of upstream requests."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "authority", self.origin.authority.encode())
        if not self.audience:
            object.__setattr__(self, "audience", str(self.origin))

    @property
    def label(self) -> str:
        """Its name in metrics, where an empty one would tell nothing; no other route can have it."""
        return self.name or "/"


class Match(NamedTuple):
    """The route of a request, and the path (with query) that its upstream is asked for."""

    route: Route
    path: bytes


class RouteTable:
    """All routes, looked up by path. Routes have distinct names; `ValueError` names one that is there twice."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: tuple[Route, ...] = tuple(routes)
        self._by_prefix: dict[bytes, tuple[Route, bytes]] = {}
        for route in self.routes:
            prefix = f"/{route.name}".encode() if route.name else b""
            if prefix in self._by_prefix:
                raise ValueError(f"two routes are named {quoted(route.name)}")
            self._by_prefix[prefix] = (route, route.base_path.encode())
        self._names: _Names | None = None
        self._depths = sorted({prefix.count(b"/") for prefix in self._by_prefix}, reverse=True)

    def match(self, path: bytes) -> Match:
        """Return the route with the longest prefix of `path`.

        Raises PathRefused for a path that could mean another one once normalised, RouteNotFound where none fits.
        """
        bare, mark, query = path.partition(b"?")
        if not bare.startswith(b"/") or _REFUSED.search(bare):
            raise PathRefused(
                "this path is not forwarded: it has dot segments, doubled, backward or encoded slashes, "
                "or octets that a path may not hold"
            )
        parts = bare.split(b"/")
        for depth in self._depths:
            found = self._by_prefix.get(b"/".join(parts[: depth + 1]))
            if found is not None and len(parts) > depth:
                route, base = found
                rest = b"/".join(parts[depth + 1 :])
                target = base + b"/" + rest if len(parts) > depth + 1 else base or b"/"
                return Match(route, target + mark + query)
        raise RouteNotFound(self._no_route(parts))

    def _no_route(self, parts: list[bytes]) -> str:
        """Return the sentence for a path of these segments, with the names that it may have meant."""
        if self._names is None:
            self._names = _Names([route.name for route in self.routes])
        wanted = [b"/".join(parts[1 : depth + 1]).decode("ascii") for depth in self._depths if depth < len(parts)]
        shown = self._names.nearest(wanted)
        listed = ", ".join(f"/{name}" for name in shown) or "none"
        others = len(self.routes) - len(shown)
        if not others:
            return f"no route for this path; the routes are: {listed}"
        return f"no route for this path; of {len(self.routes)} routes the nearest are: {listed}"


class _Names:
    """Names of routes, to be searched for those that are like another one.

    A slip (a letter left out, added, changed or swapped) leaves a beginning or an end of the name as it was, so like
    names stand near each other where names are sorted by their beginnings, or by their ends. Only those are compared:
    20 µs for any number of routes, where callers could otherwise make us compare thousands of names a request.
    """

    def __init__(self, names: list[str]) -> None:
        self._by_start = sorted((name.lower(), name) for name in names)
        self._by_end = sorted((name.lower()[::-1], name) for name in names)

    def nearest(self, wanted: list[str]) -> list[str]:
        """Return the most like ones first, as many as may be shown."""
        likeness: dict[str, float] = {}
        for word in wanted or [""]:
            lowered = word.lower()
            for ordered, key in ((self._by_start, lowered), (self._by_end, lowered[::-1])):
                place = bisect_left(ordered, (key, "")) - _NEIGHBOURS
                start = max(0, min(place, len(ordered) - 2 * _NEIGHBOURS))
                for _, name in ordered[start : start + 2 * _NEIGHBOURS]:
                    likeness[name] = max(likeness.get(name, 0.0), _likeness(lowered, name.lower()))
        shown: list[str] = []
        octets = 0
        for name in sorted(likeness, key=lambda name: (-likeness[name], name)):
            octets += len(name)
            if shown and (len(shown) == _MOST_SHOWN or octets > _MOST_SHOWN_OCTETS):
                break
            shown.append(name)
        return shown


def _likeness(one: str, other: str) -> float:
    """Return how much of two texts is the same beginning and end: 1 if they are equal."""
    most = min(len(one), len(other))
    start = 0
    while start < most and one[start] == other[start]:
        start += 1
    end = 0
    while end < most - start and one[-1 - end] == other[-1 - end]:
        end += 1
    return (start + end) / max(len(one), len(other), 1)


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


def parse_upstream(url: str) -> tuple[Origin, str]:
    """Return origin and base path of an upstream URL; ValueError with a sentence that says what is wrong.

    The scheme and the host are lowered, a default port is dropped from the origin's text (Cloud Run accepts no audience
    with `:443`). User-info, query and fragment are refused: they would silently be lost.
    """
    shown = plain(url) or "the URL"
    if not url.isprintable() or " " in url:
        raise ValueError(f"{shown}: a URL holds no blanks and no control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"{shown} is not a URL{'' if plain(url) is None else f': {exc}'}") from None
    if "@" in parts.netloc:
        raise ValueError("an upstream URL holds no user name or password; put the credential where it belongs")
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(f"{shown} must begin with https:// (or http:// for a local upstream)")
    if "?" in url or "#" in url:
        raise ValueError(f"{shown} must end there, after the path: no query, no fragment")
    if port == 0:
        raise ValueError(f"{shown}: port 0 cannot be connected to")
    if _REFUSED.search(parts.path.encode()):
        raise ValueError(f"{shown}: its path has dot segments, doubled or encoded slashes, or characters to be encoded")
    if holds_credential(url):
        raise ValueError("an upstream URL is shown to everybody, and a part of this one looks like a credential")
    origin = Origin(parts.scheme, _host(shown, parts), port or _DEFAULT_PORTS[parts.scheme])
    return origin, parts.path.rstrip("/")


def _host(shown: str, parts: SplitResult) -> str:
    """Return the host of a URL as it is asked of DNS: an address, or labels of letters, digits, `-` and `_`."""
    host = parts.hostname
    if not host:
        raise ValueError(f"{shown} has no host")
    # `urlsplit` drops what stands between `]` and the port; a zone would have to be cut off for the `:authority`.
    wrong = ValueError(f"{shown}: {quoted(host)} is neither a host name nor an address")
    if not _AUTHORITY.fullmatch(parts.netloc):
        raise wrong
    try:
        if ":" in host:
            ipaddress.IPv6Address(host)
            return host
        name = host if host.isascii() else host.encode("idna").decode()
    except ValueError:
        raise wrong from None
    if not _HOST.fullmatch(name):
        raise wrong
    return name

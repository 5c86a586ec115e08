"""Where upstreams are: scheme, host and port, read from URLs, and whether they are local. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from proxy.quoting import holds_credential, plain, quoted
from proxy.routes.locality import is_private
from proxy.routes.paths import AMBIGUOUS_PATH

__all__ = ["Origin", "parse_upstream"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")

_AUTHORITY: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:%]+)(?::[0-9]*)?")


class Origin(NamedTuple):
    """Scheme, host and port of an upstream (RFC 9110, 4.3.1); `host` has no brackets."""

    scheme: str
    """`https`, or `http` for a local upstream."""
    host: str
    """Name or address, in lower case, IPv6 without brackets."""
    port: int
    """1 … 65535."""

    @property
    def authority(self) -> str:
        """`host` or `host:port`, IPv6 in brackets, a default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_private(self) -> bool:
        """True if the host is loopback or private by its name or address, without asking DNS."""
        return is_private(self.host)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


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
    if url.count("://") > 1:
        raise ValueError(
            f"{shown} looks like several URLs; routes are given one by one, in a variable with blanks between"
        )
    if port == 0:
        raise ValueError(f"{shown}: port 0 cannot be connected to")
    if AMBIGUOUS_PATH.search(parts.path.encode()):
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
        changed = not host.isascii() and name.encode().decode("idna") != host
    except ValueError:
        raise wrong from None
    if changed:
        # Python has the older IDNA (RFC 3490), for which `straße` means `strasse`, which may be somebody else's.
        raise ValueError(f"{shown}: this host means another one to some programs; write it as DNS has it (xn--…)")
    if not _HOST.fullmatch(name):
        raise wrong
    return name

"""Which host names in an HTTP/1.1 request are this sidecar's own (RFC 9110, 7.2; RFC 9112, 3.2). Pure.

A web page whose owner points its DNS name at 127.0.0.1 (DNS rebinding) reaches the listener with that name in `Host`.
On a loopback connection therefore only names that no stranger's DNS can answer for are taken, and those that the
operator lists in `allowed_hosts`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

__all__ = ["CONTAINER_HOSTS", "Authority", "HostRules", "parse_authority"]

CONTAINER_HOSTS: Final = frozenset(
    (
        "gateway.docker.internal",
        "host.containers.internal",
        "host.docker.internal",
        "host.k3d.internal",
        "host.lima.internal",
        "host.minikube.internal",
        "host.orb.internal",
        "host.rancher-desktop.internal",
    )
)
"""What container engines call the machine that they run on. The top-level domain `internal` is reserved for private
use and is not delegated (ICANN, 2024), so no web page can have one of these names."""

_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_AUTHORITY: Final = re.compile(
    rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>(?=[^:]{1,254}(?::|\Z))" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?))"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)
_GREATEST_PORT: Final = 65_535
_HTTP_PORT: Final = 80

Authority = tuple[str, int]
"""Host in lower case, without brackets and without a final dot, and port."""


def parse_authority(text: bytes) -> Authority:
    """Return host and port of `HOST[:PORT]`; the port is 80 where none is given. ValueError where it is neither.

    Stricter than the grammar of RFC 3986, 3.2.2: only addresses and names as DNS has them, since nothing else can have
    led here; no user information, no percent-encoding, no zone.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError("what is neither a host name nor an address")
    port = int(found["port"] or _HTTP_PORT)
    if port > _GREATEST_PORT:
        raise ValueError("a port above 65535")
    if found["ipv6"] is not None:
        try:
            return str(ipaddress.IPv6Address(found["ipv6"].decode("ascii"))), port
        except ValueError:
            raise ValueError("what is no IPv6 address in brackets") from None
    return found["name"].decode("ascii").lower().removesuffix("."), port


@dataclass(frozen=True, slots=True)
class HostRules:
    """Which hosts may be named on one connection."""

    server: tuple[str, int] | None
    """The address and port that the client connected to; None on a Unix socket."""
    allowed: frozenset[str] = frozenset()
    """Names from the settings, in lower case."""

    @property
    def is_loopback(self) -> bool:
        """Whether the client connected to a loopback address."""
        return self.server is not None and _is_loopback(self.server[0])

    def allows(self, host: str) -> bool:
        """Return whether a request that names this host cannot come from a page whose own name leads here."""
        return not self.is_loopback or self._is_known(host) or _is_address(host)

    def is_own(self, authority: Authority, host: Authority | None) -> bool:
        """Return whether an absolute-form target with this authority means this server.

        It does if the client calls the server so in `host`, too, or if it is a name of this server with the port that
        the client connected to.
        """
        name, port = authority
        if authority == host and (self._is_known(name) or not self.is_loopback):
            return True
        return self.server is not None and port == self.server[1] and self._is_known(name)

    def _is_known(self, host: str) -> bool:
        """Whether `host` is an address of this server, or a name that no stranger's DNS answers for."""
        if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
            return True
        if host in CONTAINER_HOSTS or host in self.allowed:
            return True
        return _is_address(host) and (
            _is_loopback(host) or (self.server is not None and _address(host) == _address(self.server[0]))
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return _address(host).is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    # A listener on [::] sees IPv4 clients so, and older Pythons do not call ::ffff:127.0.0.1 loopback.
    return getattr(address, "ipv4_mapped", None) or address

"""Decides which host names in an HTTP/1.1 request mean this server (RFC 9110, 7.2; RFC 9112, 3.2). Pure.

A web page can reach the listener if its owner points the page's DNS name at 127.0.0.1 (DNS rebinding); the name is then
in `Host`. So on a loopback connection only two kinds of names are accepted: those that public DNS cannot resolve, and
those that the operator lists in `allowed_hosts`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from proxy.routes.locality import address_of, is_localhost_name, is_loopback

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
"""Names that container engines give to their host. The top-level domain `internal` is reserved for private use and is
never delegated (ICANN, 2024), so no web page has one of these names."""

_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_AUTHORITY: Final = re.compile(
    rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>(?=[^:]{1,254}(?::|\Z))" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?))"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)
_GREATEST_PORT: Final = 65_535
_HTTP_PORT: Final = 80

Authority = tuple[str, int]
"""Host and port; the host in lower case, without brackets and without a final dot."""


def parse_authority(text: bytes) -> Authority:
    """Return host and port of `HOST[:PORT]`; the port is 80 by default.

    Raises ValueError, whose text follows the name of the field (`is …`, `has …`) and does not quote `text`.

    Stricter than the grammar of RFC 3986, 3.2.2: only IP addresses and DNS names, because clients connect by nothing
    else; no user information, no percent-encoding, no zone.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError("is neither a host name nor an address")
    port = int(found["port"] or _HTTP_PORT)
    if port > _GREATEST_PORT:
        raise ValueError("has a port above 65535")
    if found["ipv6"] is not None:
        try:
            return str(ipaddress.IPv6Address(found["ipv6"].decode("ascii"))), port
        except ValueError:
            raise ValueError("has brackets around something that is not an IPv6 address") from None
    return found["name"].decode("ascii").lower().removesuffix("."), port


@dataclass(frozen=True, slots=True)
class HostRules:
    """The hosts that requests on one connection may name."""

    server: tuple[str, int] | None
    """Address and port that the client connected to; None on a Unix socket."""
    allowed: frozenset[str] = frozenset()
    """Names from the setting `allowed_hosts`, in lower case."""

    @property
    def is_loopback(self) -> bool:
        """True if the client connected to a loopback address."""
        return self.server is not None and is_loopback(self.server[0])

    def allows(self, host: str) -> bool:
        """Return True if a request that names this host cannot come from a web page by DNS rebinding."""
        return not self.is_loopback or self._is_known(host) or address_of(host) is not None

    def is_own(self, authority: Authority, host: Authority | None) -> bool:
        """Return True if an absolute-form target with this authority means this server.

        One of two: `host` is the same authority, and its name is known or the connection is not on loopback; or its
        name is known, and its port is the one that the client connected to.
        """
        name, port = authority
        if authority == host and (self._is_known(name) or not self.is_loopback):
            return True
        return self.server is not None and port == self.server[1] and self._is_known(name)

    def _is_known(self, host: str) -> bool:
        """True if `host` is an address of this server, or a name that public DNS cannot resolve."""
        if is_localhost_name(host) or is_loopback(host) or host in CONTAINER_HOSTS or host in self.allowed:
            return True
        address = address_of(host)
        return address is not None and self.server is not None and address == address_of(self.server[0])

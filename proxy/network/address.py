"""Addresses to listen on or to connect to: `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`; parsed and formatted here alone.

Pure: nothing here asks DNS or opens a socket.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final, NamedTuple

from proxy.quoting import holds_credential, plain, quoted
from proxy.routes.locality import is_loopback

__all__ = ["OFF", "Address", "parse_address", "parse_address_or_off", "parse_host_name"]

OFF: Final = "off"
"""Written instead of an address to switch a listener off."""

_FORMS: Final = "write HOST:PORT, [IPV6]:PORT or unix:/path"

_NUMBERS: Final = re.compile(r"[0-9.]+")

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")

# sun_path of Linux holds 108 octets with the closing zero, that of macOS 104.
_LONGEST_SOCKET_PATH: Final = 103


class Address(NamedTuple):
    """Address of a TCP or Unix socket. A Unix socket has a `path` and no host; a TCP socket has a host and no path."""

    host: str
    """Host name in lower case, or address in its shortest form without brackets; `""` for a Unix socket."""
    port: int
    """0 … 65535; 0 takes a free port. 0 for a Unix socket."""
    path: str
    """Absolute path of a Unix socket, or `""`."""

    @classmethod
    def of_socket(cls, name: Any) -> Address:
        """Return the address that `getsockname` or `getpeername` gives as `name`; of a TCP or Unix socket.

        Octets are the name of a Unix socket without a file (unix(7)), which is shown with @ for its leading zero.
        """
        if isinstance(name, bytes):
            name = f"@{name[1:].decode(errors='backslashreplace')}"
        return cls("", 0, name) if isinstance(name, str) else cls(name[0], name[1], "")

    @property
    def is_local(self) -> bool:
        """True if only this machine (this pod) can reach it: a Unix socket, `localhost` or a loopback address."""
        return bool(self.path) or is_loopback(self.host)

    @property
    def connectable_host(self) -> str:
        """The host to connect to from this machine; for a wildcard address the loopback address of its family."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - read, not bound

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse an address; ValueError with a sentence about what is wrong and which forms are possible."""
    if text.startswith("unix:"):
        return _unix(text, text.removeprefix("unix:"))
    if wrong := _no_address(text):
        raise ValueError(f"{quoted(text)} {wrong}")
    host, _, port_text = text.rpartition(":")
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) < 65536):
        raise ValueError(f"{quoted(text)}: the port must be a number from 0 to 65535; {_FORMS}")
    return Address(_host(text, host), int(port_text), "")


def parse_address_or_off(text: str) -> Address | None:
    """Parse an address; None for `off`. ValueError as of `parse_address`."""
    return None if text == OFF else parse_address(text)


def parse_host_name(text: str) -> str:
    """Return a host name in lower case and without its final dot; ValueError with a sentence about what is wrong."""
    name = text.removesuffix(".").lower()
    # Some tokens look like host names, and accepted names are shown.
    if not _HOST_NAME.fullmatch(name) or ".." in name or holds_credential(text):
        raise ValueError(f"{quoted(text)} is not a host name; write the name alone, without scheme, port or wildcard")
    return name


def _no_address(text: str) -> str | None:
    """Return what is wrong with text that is not HOST:PORT; None if it can be split into the two."""
    if "://" in text:
        return f"is a URL; an address to listen on has no scheme: {_FORMS}"
    if "/" in text:
        return f"has a slash; an address to listen on has no path: {_FORMS}"
    if "@" in text:
        return f"has an @; an address to listen on has no user name: {_FORMS}"
    if "," in text or ";" in text:
        return f"looks like several addresses; give one at a time: {_FORMS}"
    if _is_ipv6(text) and not text.startswith("["):
        return "is an IPv6 address without brackets, or without a port; write [ADDRESS]:PORT, as in [::1]:9081"
    if text.startswith("[") and text.endswith("]"):
        return f"has no port; {_FORMS}"
    if (text.isascii() and text.isdigit()) or text.startswith(":"):
        port = text.removeprefix(":") if text.removeprefix(":").isdigit() else "PORT"
        return f"has no host; write 127.0.0.1:{port} for this machine, 0.0.0.0:{port} for every network"
    if text.startswith("*:"):
        port = text.removeprefix("*:") if text.removeprefix("*:").isdigit() else "PORT"
        return f"has no host; write 0.0.0.0:{port} for every network, [::]:{port} for IPv6 as well"
    if ":" not in text:
        return f"has no port; {_FORMS}"
    return None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _unix(text: str, path: str) -> Address:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError(f"{quoted(text)}: a Unix socket needs the absolute path of a file; {_FORMS}")
    if len(path.encode(errors="surrogateescape")) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"{quoted(text)}: the path of a Unix socket may have {_LONGEST_SOCKET_PATH} octets, not more")
    if holds_credential(path):
        raise ValueError(f"{quoted(text)}: the path of a Unix socket is shown to everybody; {_FORMS}")
    return Address("", 0, path)


def _host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        if not _is_ipv6(host[1:-1]):
            raise ValueError(f"{quoted(text)}: the text in brackets is not an IPv6 address")
        return ipaddress.IPv6Address(host[1:-1]).compressed
    if ":" in host:
        raise ValueError(f"{quoted(text)}: an IPv6 address stands in brackets, as in [::1]:9081")
    if not _HOST_NAME.fullmatch(host) or plain(host) is None:
        raise ValueError(f"{quoted(text)}: {quoted(host)} is neither a host name nor an address; {_FORMS}")
    if _NUMBERS.fullmatch(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"{quoted(text)}: {host} is not an IPv4 address; it has four numbers up to 255") from None
    return host.lower()

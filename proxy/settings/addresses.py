"""Where to bind: `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`. Nothing here asks DNS or opens a socket."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

__all__ = ["Address", "parse_address"]

_FORMS: Final = "write HOST:PORT, [IPV6]:PORT or unix:/path"

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")

# sun_path of Linux holds 108 octets with the closing zero, that of macOS 104.
_LONGEST_SOCKET_PATH: Final = 103


class Address(NamedTuple):
    """One place to bind. A Unix socket has a `path` and no host; a TCP socket has a host and no path."""

    host: str
    """Host name or address, without brackets; `""` for a Unix socket."""
    port: int
    """0 … 65535; 0 takes a free port. 0 for a Unix socket."""
    path: str
    """Absolute path of a Unix socket, or `""`."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine (this pod) can reach it: a Unix socket, `localhost` or a loopback address."""
        if self.path or self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    @property
    def connectable_host(self) -> str:
        """The host to connect to from this machine: for a wildcard the loopback address of its family."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - read, not bound

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address that `text` writes; ValueError with a sentence that says what is wrong."""
    if text.startswith("unix:"):
        return _unix(text, text.removeprefix("unix:"))
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} has no port; {_FORMS}")
    if not host:
        raise ValueError(
            f"{text!r} has no host; write 127.0.0.1{text} for this machine, 0.0.0.0{text} for every network"
        )
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) < 65536):
        raise ValueError(f"{text!r}: the port must be a number from 0 to 65535; {_FORMS}")
    return Address(_host(text, host), int(port_text), "")


def _unix(text: str, path: str) -> Address:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError(f"{text!r}: a Unix socket needs the absolute path of a file; {_FORMS}")
    if len(path.encode(errors="surrogateescape")) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"{text!r}: the path of a Unix socket may have {_LONGEST_SOCKET_PATH} octets, not more")
    return Address("", 0, path)


def _host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"{text!r}: what stands in brackets is not an IPv6 address") from None
        return host[1:-1]
    if ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, as in [::1]:9081")
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{text!r}: {host!r} is neither a host name nor an address; {_FORMS}")
    return host

"""Rules for the values of single settings."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, ValidationInfo

from proxy.network.address import Address, parse_address
from proxy.network.http_proxy import parse_http_proxy
from proxy.quoting import plain

__all__ = [
    "Octets",
    "Seconds",
    "bindable",
    "bindable_tls",
    "certified",
    "distinct",
    "http_proxy",
    "local_name",
    "permissions",
    "unix_socket",
]

Seconds = Annotated[float, Field(allow_inf_nan=False, json_schema_extra={"x-unit": "seconds"})]
"""A duration."""
Octets = Annotated[int, Field(json_schema_extra={"x-unit": "octets"})]
"""A size."""

# The owner must be able to connect: `healthcheck` and `wait` do.
_MODE: Final = re.compile(r"0?[67][0-7]{2}")
_LOCAL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_NO_NUMBER: Final = 2**32 - 1  # to chown(2), it leaves the owner as it is; no larger number is one


def bindable(text: str, info: ValidationInfo) -> str:
    """Check an address to listen on. The rule needs `unsafe_listen`, which is therefore the first field."""
    if not parse_address(text).is_local and not info.data.get("unsafe_listen", True):
        raise ValueError(
            f"{text} can be reached from other machines, and every client that reaches it can call the services with "
            "the sidecar's identity; use a loopback address or a Unix socket, or accept that with unsafe_listen "
            "(--unsafe-listen)"
        )
    return text


def bindable_tls(text: str, info: ValidationInfo) -> str:
    """Check an address to listen on with TLS: any is allowed where only clients with a certificate are served."""
    return text if info.data.get("tls_client_ca") is not None and parse_address(text) else bindable(text, info)


def unix_socket(text: str) -> str:
    """Check the address of a Unix socket."""
    if not parse_address(text).path:
        raise ValueError(f"{text} is not a Unix socket; write unix:/path")
    return text


def permissions(text: str) -> str:
    """Check permissions in octal."""
    if not _MODE.fullmatch(text):
        raise ValueError('must be permissions in octal, such as "0660" (owner and group) or "0600" (owner alone)')
    return text


def local_name(text: str) -> str:
    """Check the name or number of a user or a group."""
    name = _LOCAL_NAME.fullmatch(text) and plain(text) is not None
    if not name or (text.isdecimal() and int(text) >= _NO_NUMBER):
        raise ValueError("must be the name or the number of a user or group of this machine")
    return text


def http_proxy(text: str) -> str:
    """Check the URL of an HTTP proxy."""
    parse_http_proxy(text)
    return text


def distinct(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Check the addresses to listen on: there is one, and none is named twice."""
    if not addresses:
        raise ValueError("names no address; leave it out for 127.0.0.1:9081")
    fixed = _fixed(addresses)
    if len(set(fixed)) < len(fixed):
        raise ValueError("names an address twice; each can be bound once")
    return addresses


def certified(addresses: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Check the addresses to listen on with TLS: they have a certificate, and are no others' too."""
    files = {name: info.data.get(name) for name in ("tls_certificate", "tls_key", "tls_client_ca")}
    lacking = [name for name in ("tls_certificate", "tls_key") if files[name] is None and name in info.data]
    if addresses and lacking:
        raise ValueError(f"needs a certificate: set {' and '.join(lacking)}")
    if not addresses and (given := [name for name, file in files.items() if file is not None]):
        raise ValueError(f"tls_listen names no address, so nothing uses {' and '.join(given)}")
    fixed = _fixed(addresses)
    if len(set(fixed)) < len(fixed) or set(fixed) & set(map(parse_address, info.data.get("listen", ()))):
        raise ValueError("names an address that is named before; each can be bound once")
    return addresses


def _fixed(addresses: tuple[str, ...]) -> list[Address]:
    """Return those that are the same at each start: a port 0 is another one each time."""
    return [address for address in map(parse_address, addresses) if address.path or address.port]

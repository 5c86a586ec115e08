"""Which hosts are local: this machine, or a private network. Decided by name and address, without asking DNS. Pure.

A host is written without brackets; an IPv6 address may have a zone (`fe80::1%eth0`). An IPv4-mapped IPv6 address
(`::ffff:127.0.0.1`, RFC 4291, 2.5.5.2) counts as the IPv4 address, which Python before 3.13 does not do by itself.
"""

from __future__ import annotations

import ipaddress

__all__ = ["address_of", "is_link_local", "is_localhost_name", "is_loopback", "is_private"]


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` writes, without its zone; None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_localhost_name(host: str) -> bool:
    """Return True for `localhost` and the names below it, which mean this machine by definition (RFC 6761, 6.3).

    To bind or connect, only `localhost` itself is safe: a resolver may ask DNS for the others. See `is_loopback`.
    """
    name = host.lower()
    return name == "localhost" or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Return True for `localhost` and for loopback addresses: only this machine (in a pod: this pod) reaches them."""
    address = address_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def is_link_local(host: str) -> bool:
    """Return True for addresses that are valid on one link only (169.254.0.0/16, fe80::/10); metadata servers."""
    address = address_of(host)
    return address is not None and address.is_link_local


def is_private(host: str) -> bool:
    """Return True for hosts that the internet does not reach: localhost names, loopback, private, link-local."""
    address = address_of(host)
    if address is None:
        return is_localhost_name(host)
    return address.is_loopback or address.is_private or address.is_link_local

"""Which hosts are reached without a proxy where there is one: the same for upstreams and for calls to Google."""

from __future__ import annotations

import ipaddress

from proxy.routes.locality import address_of, is_loopback

__all__ = ["is_reached_directly"]


def is_reached_directly(host: str, port: int) -> bool:
    """Return True for a loopback host, and for one that `no_proxy` names, with this port or without one.

    `no_proxy` may also have a domain above it (`example.com`, `.example.com` or `*.example.com`), a network that its
    address is in (`10.0.0.0/8`), or `*`. An IPv6 address may have brackets.
    """
    # Here, since only sidecars with a proxy need it: it is a fifth of a MiB.
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    # Python knows neither the form of domains that Go has, nor brackets, nor networks.
    names = getproxies_environment().get("no", "").replace("*.", ".").replace("[", "").replace("]", "")
    if is_loopback(host) or proxy_bypass_environment(f"{host}:{port}", {"no": names}):
        return True
    address = address_of(host)
    return address is not None and any(_is_in(address, name.strip()) for name in names.split(","))


def _is_in(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False

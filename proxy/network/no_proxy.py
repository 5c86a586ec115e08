"""Which hosts are reached without a proxy where there is one: the same for upstreams and for calls to Google."""

from __future__ import annotations

from proxy.routes.locality import is_loopback

__all__ = ["is_reached_directly"]


def is_reached_directly(host: str, port: int) -> bool:
    """Return True for a loopback host, and for one that `no_proxy` names, with this port or without one.

    `no_proxy` may also have a domain above it (`example.com`, `.example.com` or `*.example.com`), or `*`.
    """
    # Here, since only sidecars with a proxy need it: it is a fifth of a MiB.
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    # Python does not know the form that Go has.
    names = getproxies_environment().get("no", "").replace("*.", ".")
    return is_loopback(host) or bool(proxy_bypass_environment(f"{host}:{port}", {"no": names}))

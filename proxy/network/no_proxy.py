"""The exceptions of the environment from proxies, `no_proxy`; they hold for upstreams and for calls to Google."""

from __future__ import annotations

__all__ = ["is_in_no_proxy"]


def is_in_no_proxy(host: str, port: int) -> bool:
    """Return True if `no_proxy` has this host, with this port or without one, a domain above it, or `*`.

    A domain is written `example.com`, `.example.com` or `*.example.com`.
    """
    # Here, since only sidecars with a proxy need it: it is a fifth of a MiB.
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    # Python does not know the form that Go has.
    names = getproxies_environment().get("no", "").replace("*.", ".")
    return bool(proxy_bypass_environment(f"{host}:{port}", {"no": names}))

"""The proxy that the environment names for calls to Google (`https_proxy`, `no_proxy` …)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from yarl import URL

from proxy.errors import ProxyInvalid
from proxy.network.no_proxy import is_reached_directly

__all__ = ["Proxy", "proxy_for"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. Its login has no repr."""

    url: URL
    """Without a login."""
    headers: Mapping[str, str] = field(repr=False)
    """`proxy-authorization`, if there is a login."""


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy for this URL, or None. ProxyInvalid for a value that cannot be used; it is never quoted.

    aiohttp's `trust_env` would do this, and take logins for the host from `~/.netrc` as well: a `default` there would
    be sent to Google, and make calls that are authorised already fail.
    """
    parts = urlsplit(url)
    named = getproxies_environment().get(parts.scheme)
    if not named or is_reached_directly(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)):
        return None
    wrong = f"the variable {_variable(parts.scheme)}, the proxy for calls to {parts.hostname},"
    remedy = "write http://HOST:PORT, or unset it, or name the host in no_proxy"
    scheme, separator, _ = named.partition("://")
    if separator and scheme.lower().startswith("socks"):
        raise ProxyInvalid(f"{wrong} names a SOCKS proxy, and only HTTP proxies can be used; {remedy}")
    if separator and scheme.lower() not in ("http", "https"):
        raise ProxyInvalid(f"{wrong} has a scheme that is not http or https; {remedy}")
    proxy = _parsed(named if separator else f"http://{named}")
    if proxy is None:
        raise ProxyInvalid(f"{wrong} is not the URL of a proxy; {remedy}")
    headers = {}
    if proxy.user is not None:
        login = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
        headers["proxy-authorization"] = f"Basic {login}"
    return Proxy(proxy.with_user(None), headers)


def _parsed(text: str) -> URL | None:
    """Return the URL of a proxy; None where there is more, or less, than scheme, login, host and port."""
    try:
        url = URL(text)
        (url.host or "").encode("idna")  # as getaddrinfo does: a label can be empty or too long
        usable = url.host and url.port and url.path in ("", "/") and not (url.query_string or url.fragment)
    except ValueError:
        return None
    return url if usable and all("!" <= mark <= "~" for mark in text) else None


def _variable(scheme: str) -> str:
    """Return the name of the variable in effect, as it is spelled; lower case has precedence."""
    name = f"{scheme}_proxy"
    return name if name in os.environ else next((given for given in os.environ if given.lower() == name), name)

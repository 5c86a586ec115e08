"""The URL of an HTTP proxy: `http://[USER:PASSWORD@]HOST[:PORT]`, and its answer to a login. Pure.

No error quotes the login.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

__all__ = ["HttpProxy", "login_refusal", "parse_http_proxy"]

_FORM: Final = "write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT"

# A challenge begins with its scheme; its parameters have `=` (RFC 9110, 11.6.1). Any other word could be a secret.
_SCHEME: Final = re.compile(r"(?i)(?:^|,)\s*(Basic|Bearer|Digest|Kerberos|Negotiate|NTLM)(?=\s+[^\s=]|\s*(?:,|$))")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProxy:
    """A proxy that is reached without TLS and opens tunnels (CONNECT)."""

    host: str
    """Name or address, without brackets."""
    port: int
    """1 … 65535."""
    login: str | None = field(default=None, repr=False)
    """`USER:PASSWORD`, decoded; None if there is none."""

    @property
    def authorization(self) -> str | None:
        """The value of `proxy-authorization` (RFC 7617); None without a login."""
        return None if self.login is None else f"Basic {base64.b64encode(self.login.encode()).decode()}"

    def url(self) -> str:
        """Return the URL without the login."""
        return f"http://{self}"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_http_proxy(text: str) -> HttpProxy:
    """Return the proxy that a URL names; the default port is 80.

    ValueError says what is wrong, and quotes nothing.
    """
    scheme, separator, _ = text.partition("://")
    if not separator or not all("!" <= mark <= "~" for mark in text):
        raise ValueError(f"must be the URL of an HTTP proxy; {_FORM}")
    if scheme.lower() != "http":
        kind = "a SOCKS proxy" if scheme.lower().startswith("socks") else "a proxy that is not reached by http://"
        raise ValueError(f"names {kind}, and only HTTP proxies without TLS to the proxy itself can be used; {_FORM}")
    wrong = ValueError(f"must have a host, a port of 1 to 65535, and no path; {_FORM}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, 80 if parts.port is None else parts.port
        (host or "").encode("idna")  # as getaddrinfo does: a label can be empty or too long
    except ValueError:
        raise wrong from None
    if not host or not port or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise wrong
    login = None
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return HttpProxy(host=host, port=port, login=login)


def login_refusal(challenges: Iterable[str], form: str, *, has_login: bool) -> str:
    """Return what a proxy does that answers 407, and the remedy; `form` is how to write a login.

    `challenges` are the values of its `proxy-authenticate` fields.
    """
    schemes = dict.fromkeys(scheme for challenge in challenges for scheme in _SCHEME.findall(challenge))
    if schemes and not any(scheme.lower() == "basic" for scheme in schemes):
        return f"wants a login by {', '.join(schemes)} (407), and only Basic is supported; let it take Basic"
    what = "refuses the login in its URL" if has_login else "requires a login"
    return f"{what} (407); write {form}, percent-encoded"

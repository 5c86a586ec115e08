"""Which deployment a route name, a host or a URL stands for: URL, headers, and the route that its requests take.

==============================================  ==============================================================
`greeter`, `/greeter`                           a named route: SIDECAR/greeter
`greeter-….run.app`, `https://greeter-….run.app`  an open route by path: SIDECAR/greeter-….run.app
`http://greeter-….run.app`                      an open route by authority, for Restate's proxy setting
`SIDECAR/greeter`, `SIDECAR/greeter-….run.app`    the deployment URL itself
==============================================  ==============================================================

SIDECAR is where Restate reaches the sidecar, such as `http://127.0.0.1:9081`. A host, and a URL, may have a path. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from proxy.errors import RequestRefused
from proxy.http2.policy.fields import CONNECTION_SPECIFIC
from proxy.network.address import parse_address
from proxy.quoting import names_secret, plain, quoted
from proxy.routes import Match, OpenMatch, Route, RouteTable
from proxy.routes.locality import is_loopback
from proxy.routes.open_routes import (
    AUDIENCE_FIELD,
    DELEGATES_FIELD,
    FIELD_PREFIX,
    ID_TOKEN_FIELD,
    IMPERSONATE_FIELD,
    FieldLines,
    named_route_refusal,
)
from proxy.settings.layers import did_you_mean

__all__ = [
    "Authentication",
    "Headers",
    "Target",
    "TargetRefused",
    "checked_sidecar_url",
    "find_target",
    "leads_to_sidecar",
    "may_be_secret",
    "own_lines",
    "read_headers",
    "sidecar_url",
    "split_url",
    "unknown_route",
]

Headers = tuple[tuple[str, str], ...]
"""Name and value of each additional header of a deployment."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,99}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
_MOST_SHOWN_ROUTES: Final = 20
_OF_THE_CONNECTION: Final = {name.decode() for name in CONNECTION_SPECIFIC} | {"te", "host", "content-length"}
"""With one of these, restate-server sends no request, or the request is malformed (RFC 9113, 8.2.2 and 8.1.1)."""
_TOKEN_NAMES: Final = frozenset(("x-serverless-authorization", "x_serverless_authorization"))
_BARE: Final = "must have neither a user name nor ? nor #"


class TargetRefused(Exception):
    """There is no such deployment, or the sidecar would refuse it; `problems` has a sentence for everything wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("; ".join(self.problems))


class Authentication(NamedTuple):
    """The authentication of a deployment in Restate's words; None and `()` where a word is not given."""

    id_token: bool | None = None
    """False: no token is added."""
    impersonate: str | None = None
    """E-mail of the service account that the token is for."""
    audience: str | None = None
    """Audience of the token."""
    delegates: tuple[str, ...] = ()
    """E-mails of the accounts between the ambient identity and `impersonate`."""

    def headers(self) -> Headers:
        """Return the headers that say the same to the sidecar on an open route."""
        given = (
            (ID_TOKEN_FIELD, "false" if self.id_token is False else None),
            (IMPERSONATE_FIELD, self.impersonate),
            (AUDIENCE_FIELD, self.audience),
            (DELEGATES_FIELD, ",".join(self.delegates) or None),
        )
        return tuple((name, value) for name, value in given if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A deployment, and the route that its requests take."""

    url: str
    """The deployment's URL, as Restate gets it."""
    route: Route
    """The route that its requests take."""
    path: str
    """The path of `url` without the slash at its end, to which Restate adds: `/NAME`, `/HOST/base`, or `/base`."""
    authority: str = ""
    """The host that requests name as their authority; `""` if the path says where they go."""
    headers: Headers = ()
    """The additional headers of the deployment."""


def sidecar_url(listen: Iterable[str]) -> str | None:
    """Return the URL of the first of these listening addresses that has a TCP port; None if there is none.

    An address for every network becomes the loopback address.
    """
    for address in map(parse_address, listen):
        if not address.path and address.port:
            host = address.connectable_host
            return f"http://[{host}]:{address.port}" if ":" in host else f"http://{host}:{address.port}"
    return None


def checked_sidecar_url(url: str) -> str:
    """Return the URL without a slash at its end; ValueError unless it can be where Restate reaches the sidecar."""
    parts = _split(url)
    if parts.path.strip("/"):
        raise ValueError(f"must be http://HOST:PORT, or with tls_listen https://…, without a path, not {quoted(url)}")
    return url.rstrip("/")


def read_headers(pairs: Iterable[str]) -> Headers:
    """Return the headers that `NAME=VALUE` pairs stand for, names in lower case; TargetRefused with all problems.

    Values may be secrets, and are in no problem.
    """
    headers: dict[str, str] = {}
    problems = []
    for pair in pairs:
        given, equals, value = pair.partition("=")
        name, value = given.strip().lower(), value.strip(" \t")
        if not equals or not _NAME.fullmatch(name) or plain(name) is None:
            problems.append(
                "--extra-header must be NAME=VALUE, where NAME is the name of a header, as in x-team=payments"
            )
        elif not _VALUE.fullmatch(value):
            problems.append(f"--extra-header {name}: the value must be printable ASCII")
        elif name in headers:
            problems.append(f"--extra-header {name} is given twice; a deployment has one value for each header")
        elif name in _OF_THE_CONNECTION:
            problems.append(
                f"--extra-header {name}: an HTTP/2 client sets this itself, or must not send it; leave it out"
            )
        elif name in _TOKEN_NAMES:
            problems.append(f"--extra-header {name}: the sidecar adds this header itself; leave it out")
        else:
            headers[name] = value
    if problems:
        raise TargetRefused(problems)
    return tuple(headers.items())


def may_be_secret(name: str, value: str) -> bool:
    """Return whether the value of a header must not be shown: its name says so, or it is not plainly no secret."""
    return names_secret(name) or plain(value) is None


def own_lines(headers: Iterable[tuple[str, str]]) -> FieldLines:
    """Return those of these headers that are meant for the sidecar, as lines of a request."""
    lines = [(name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers]
    return tuple(line for line in lines if line[0].replace(b"_", b"-").startswith(FIELD_PREFIX))


def leads_to_sidecar(url: str, sidecar: str) -> bool:
    """Return True if a URL has the host and port of the sidecar's. All names of this machine count as the same host."""
    try:
        one, other = _split(url), _split(sidecar)
    except ValueError:
        return False
    return one.scheme == other.scheme and _place(one) == _place(other)


def find_target(
    text: str, table: RouteTable, sidecar: str, authentication: Authentication, headers: Headers = ()
) -> Target:
    """Return the deployment that `text` stands for; the module's docstring has the forms. Raises TargetRefused."""
    given = dict(headers)
    twice = [name for name, _ in authentication.headers() if name in given]
    if twice:
        raise TargetRefused(
            [f"--extra-header {name} is given as a flag as well; leave one of the two out" for name in twice]
        )
    headers = (*headers, *authentication.headers())
    path, authority, needs_open = _requested(text, table, sidecar)
    target = path.removesuffix("/")  # Of several, Restate keeps the others.
    try:
        # What is not latin-1 becomes a backslash, which no path may hold; a question mark would begin a query.
        found = table.find(authority.encode(), f"{target}/discover".encode("latin-1", "backslashreplace"))
        if needs_open and isinstance(found, Match):
            raise TargetRefused([_not_open(text, table)])
        route = _route(found, table, authentication, headers)
    except RequestRefused as exc:
        raise TargetRefused([str(exc)]) from None
    url = f"http://{authority}{path}" if authority else f"{sidecar}{path}"
    return Target(url=url, route=route, path=target, authority=authority, headers=headers)


def unknown_route(name: str, names: Sequence[str]) -> str:
    """Return the sentence that says that none of the routes with these names has this name, which may be a secret."""
    if not names:
        return (
            "there is no named route, only [deployments]: name the host of a service that the list hosts allows, as in "
            "greeter-123456789012.europe-west1.run.app"
        )
    known = ", ".join(f"/{route}" for route in names[:_MOST_SHOWN_ROUTES])
    known += f" and {len(names) - _MOST_SHOWN_ROUTES} more" if len(names) > _MOST_SHOWN_ROUTES else ""
    shown = f"/{name}" if plain(name) is not None else f"of this name: it is {quoted(name)}"
    hint = did_you_mean(name, names, lambda near: f"/{near}")
    return f"there is no route {shown}; the routes are: {known}{hint}"


def _route(found: Match | OpenMatch, table: RouteTable, authentication: Authentication, headers: Headers) -> Route:
    lines = own_lines(headers)
    if isinstance(found, OpenMatch):
        assert table.open_routes is not None  # noqa: S101 - tells the type checker
        return table.open_routes.route(found.host, lines)
    if any(authentication):
        raise TargetRefused(
            [
                f"the authentication of the route /{found.route.name} stands in the settings of the sidecar: leave the "
                "--gcp-… flags out, or register its host as an open route"
            ]
        )
    if lines:
        raise TargetRefused([named_route_refusal(lines)])
    return found.route


def _requested(text: str, table: RouteTable, sidecar: str) -> tuple[str, str, bool]:
    """Return path and authority of the deployment's requests, and whether only an open route will do."""
    if "://" not in text:
        segment = text.lstrip("/").partition("/")[0]
        if ":" not in segment:
            name = text.strip("/")
            known = any(route.name == name for route in table.routes)
            if not known and ("." not in segment or table.open_routes is None):
                raise TargetRefused([unknown_route(name, [route.name for route in table.routes])])
            if "?" in name or "#" in name:
                raise TargetRefused([f"the URL {_BARE}"])
            host = segment.lower()
            if not known and table.open_routes is not None and table.open_routes.allowed.allows_host(host):
                name = f"{host}{name[len(segment) :]}"  # Restate would take another spelling for another deployment.
            return f"/{name}", "", not known
        text = f"http://{text}"  # Restate's CLI takes a URL without a scheme, too.
    try:
        parts = _split(text)
    except ValueError as exc:
        raise TargetRefused([f"the URL {exc}"]) from None
    if leads_to_sidecar(text, sidecar):
        return parts.path or "/", "", False
    host = (parts.hostname or "").lower()
    place = sidecar or "an address that is not known here"
    if parts.port not in (None, _DEFAULT_PORTS[parts.scheme]):
        raise TargetRefused(
            [
                f"{quoted(text)} is not at the sidecar, which Restate reaches at {place} (--sidecar says where), and "
                "services of Cloud Run have no port"
            ]
        )
    if parts.scheme == "http":
        if table.open_routes is None or not table.open_routes.allowed.allows_host(host):
            raise TargetRefused(
                [
                    f"{quoted(text)} is neither at the sidecar, which Restate reaches at {place} (--sidecar says "
                    "where), nor at a host of the list hosts of [deployments]"
                ]
            )
        return parts.path or "/", host, True
    if table.open_routes is None or not table.open_routes.allowed.allows_host(host):
        raise TargetRefused([_not_open(text, table)])
    return f"/{host}{parts.path.rstrip('/')}", "", True


def _not_open(text: str, table: RouteTable) -> str:
    """Return why no open route leads to this URL or host, with the named route that does."""
    url = text if "://" in text else f"https://{text}"
    near = [route.name for route in table.routes if f"{route.origin}{route.base_path}" == url.rstrip("/")]
    # As it was written: in lower case a secret does not look like one. It need not be a host: `HOST]` is none.
    host = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    hint = f"; the route /{near[0]} has this URL: register it by its name" if near else ""
    return f"{quoted(host)} is not in the list hosts of [deployments]{hint}"


def split_url(url: str) -> SplitResult | None:
    """Return the parts of an http:// or https:// URL with a host and without a wrong port; None for other text."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as getaddrinfo does: a label can be empty or too long
        return parts if parts.scheme in _DEFAULT_PORTS and parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _split(url: str) -> SplitResult:
    """Return the parts of an http URL; ValueError with the rest of a sentence that does not quote a secret."""
    parts = split_url(url)
    if parts is None:
        raise ValueError(f"must be http://… or https://… with a host, not {quoted(url)}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(_BARE)
    return parts


def _place(parts: SplitResult) -> tuple[str, int]:
    host = (parts.hostname or "").lower()
    return ("localhost" if is_loopback(host) else host), parts.port or _DEFAULT_PORTS[parts.scheme]

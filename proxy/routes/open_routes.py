"""Open routes: a deployment names its host and its authentication itself, within the allow-lists. Pure.

The host stands in the path (`/HOST/base/discover`), or is the `:authority` of the request, as Restate sends it with its
proxy setting. The authentication stands in header fields of the deployment, named as in the settings of a route:
`x-cloudrun-sidecar-gcp-audience` is `gcp_audience`.

A token's audience is the origin of the host that it is sent to, or one that the lists allow for this very host: so a
deployment at another host never gets a token that a service would take.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.errors import DeploymentRefused
from proxy.quoting import plain, quoted
from proxy.routes.allow_lists import AllowLists
from proxy.routes.authentication import NEEDS_ACCOUNT, UNSIGNED, check_account, check_audience
from proxy.routes.locality import is_localhost_name, is_loopback
from proxy.routes.origin import Origin
from proxy.routes.route import Route

__all__ = [
    "AUDIENCE_FIELD",
    "DELEGATES_FIELD",
    "DEPLOYMENT_FIELDS",
    "FIELD_PREFIX",
    "ID_TOKEN_FIELD",
    "IMPERSONATE_FIELD",
    "FieldLines",
    "OpenMatch",
    "OpenRoutes",
    "named_route_refusal",
]

FIELD_PREFIX: Final = b"x-cloudrun-sidecar-"
"""How the names of all fields begin that are meant for the sidecar; none of them is sent upstream on an open route."""

ID_TOKEN_FIELD: Final = "x-cloudrun-sidecar-gcp-id-token"  # noqa: S105 - a name
"""Name of the field that says `false` where no token is added."""
IMPERSONATE_FIELD: Final = "x-cloudrun-sidecar-gcp-impersonate-service-account"
"""Name of the field with the e-mail of the impersonated account."""
AUDIENCE_FIELD: Final = "x-cloudrun-sidecar-gcp-audience"
"""Name of the field with the audience of the token."""
DELEGATES_FIELD: Final = "x-cloudrun-sidecar-gcp-delegates"
"""Name of the field with the e-mails of the delegates, joined by commas."""
_FIELDS: Final = (ID_TOKEN_FIELD, IMPERSONATE_FIELD, AUDIENCE_FIELD, DELEGATES_FIELD)

DEPLOYMENT_FIELDS: Final = frozenset(name.encode() for name in _FIELDS)
"""Names of the fields with which a deployment chooses its authentication."""

FieldLines = tuple[tuple[bytes, bytes], ...]
"""Name and value of each line of a request whose name begins with `FIELD_PREFIX`, in their order."""

_HTTPS_PORT: Final = 443
_CLOUD_RUN: Final = ".run.app"
_TRUTHS: Final = {"true": True, "false": False}


class OpenMatch(NamedTuple):
    """The host of a request, and the path (with query) that it is asked for."""

    host: str
    """Host name of the service, in lower case; the lists allow it."""
    path: bytes
    """What the service is asked for, with the query."""


class OpenRoutes:
    """What requests on open routes mean, by the allow-lists."""

    def __init__(self, allowed: AllowLists) -> None:
        self.allowed = allowed
        """The lists."""
        self._accounts = frozenset(allowed.accounts)
        self._audiences = frozenset(allowed.audiences)

    def host(self, text: bytes) -> str | None:
        """Return the allowed host that `text` is, in lower case; None for any other text.

        Nothing but the name of a host counts: no port, no final dot, no percent-encoding.
        """
        if not text.isascii():
            return None
        host = text.decode("ascii").lower()
        return host if self.allowed.allows_host(host) else None

    def by_authority(self, authority: bytes, path: bytes) -> OpenMatch | None:
        """Return the match of a request whose authority is an allowed host, else None."""
        host = self.host(authority)
        return None if host is None else OpenMatch(host, path)

    def by_path(self, path: bytes) -> OpenMatch | None:
        """Return the match of a request whose path begins with an allowed host, else None."""
        bare, mark, query = path.partition(b"?")
        segment, _, rest = bare[1:].partition(b"/")
        host = self.host(segment)
        return None if host is None else OpenMatch(host, b"/" + rest + mark + query)

    def refusal(self, authority: bytes, path: bytes, *, cloud_run_only: bool) -> DeploymentRefused | None:
        """Return why this request, which no open route takes, is refused; None if it names no host.

        With `cloud_run_only` only host names of Cloud Run count, which a named route cannot mean.
        """
        segment = path.partition(b"?")[0][1:].partition(b"/")[0]
        for text in (segment.decode("latin-1"), authority.decode("latin-1")):
            name = text.lower().rpartition("@")[2].partition(":")[0].rstrip(".")
            if name.endswith(_CLOUD_RUN) or (text.encode("latin-1") == segment and "." in name and not cloud_run_only):
                return DeploymentRefused(f"{quoted(text)} {self._not_listed(name)}")
        return None

    def unlisted(self, authority: bytes) -> str:
        """Return what to add to the sentence that a request has no route: its authority may be a deployment's host.

        Empty text without an authority, or if that is this machine.
        """
        text = authority.decode("latin-1")
        name = text[1:].partition("]")[0] if text.startswith("[") else text.lower().partition(":")[0].rstrip(".")
        if not name or is_loopback(name) or is_localhost_name(name):
            return ""
        return f"; and {quoted(text)}, if that is the host of a deployment, {self._not_listed(name)}"

    def _not_listed(self, name: str) -> str:
        hint = f"; write it as {name}" if self.host(name.encode("latin-1", "replace")) is not None else ""
        return f"is not in the list hosts of [deployments]{hint}"

    def route(self, host: str, lines: FieldLines, shared_label: str = "") -> Route:
        """Return the route to an allowed host with the authentication that these lines choose.

        Raises DeploymentRefused with everything that is wrong.
        """
        given, problems = _given(lines)
        signed = _TRUTHS.get(given.get(ID_TOKEN_FIELD, "true").lower())
        if signed is None:
            problems.append(f"{ID_TOKEN_FIELD} must be true or false, not {quoted(given[ID_TOKEN_FIELD])}")
        if signed is False:
            problems += [
                f"{name} {UNSIGNED}" for name in (IMPERSONATE_FIELD, AUDIENCE_FIELD, DELEGATES_FIELD) if name in given
            ]
        account = given.get(IMPERSONATE_FIELD)
        delegates = (
            tuple(email.strip(" \t") for email in given[DELEGATES_FIELD].split(",")) if DELEGATES_FIELD in given else ()
        )
        problems += [] if account is None else self._account_problems(IMPERSONATE_FIELD, account)
        if delegates and account is None:
            problems.append(f"{DELEGATES_FIELD}: {NEEDS_ACCOUNT}")
        problems += [problem for email in delegates for problem in self._account_problems(DELEGATES_FIELD, email)]
        origin = Origin("https", host, _HTTPS_PORT)
        audience = given.get(AUDIENCE_FIELD, str(origin))
        problems += self._audience_problems(host, audience)
        if problems:
            raise DeploymentRefused(f"the deployment at {host} is refused: {'; '.join(problems)}")
        return Route(
            name=str(origin),
            is_open=True,
            shared_label=shared_label,
            origin=origin,
            signed=signed is True,
            audience=audience,
            impersonate=account,
            delegates=delegates,
        )

    def allows(self, route: Route) -> bool:
        """Return True if the lists allow an open route that earlier ones allowed."""
        host = route.origin.host
        accounts = () if route.impersonate is None else (route.impersonate, *route.delegates)
        return (
            self.allowed.allows_host(host)
            and self._accounts.issuperset(accounts)
            and not self._audience_problems(host, route.audience)
        )

    def _account_problems(self, name: str, email: str) -> list[str]:
        try:
            check_account(email)
        except ValueError as exc:
            return [f"{name}: {exc}"]
        return [] if email in self._accounts else [f"{name}: {email} is not in the list accounts of [deployments]"]

    def _audience_problems(self, host: str, audience: str) -> list[str]:
        try:
            check_audience(audience)
        except ValueError as exc:
            return [f"{AUDIENCE_FIELD} {exc}"]
        if audience == f"https://{host}" or f"{host}={audience}" in self._audiences:
            return []
        shown = f"{host}={audience}" if plain(audience) is not None else f"{quoted(audience)} for {host}"
        return [
            f"{AUDIENCE_FIELD}: {shown} is not in the list audiences of [deployments]; a token for one "
            f"service is never sent to another (without this header the audience is https://{host})"
        ]


def named_route_refusal(lines: FieldLines) -> str:
    """Return why a deployment with these lines is refused on a named route."""
    names = ", ".join(dict.fromkeys(quoted(name.decode("latin-1")) for name, _ in lines))
    return (
        f"the authentication of a named route stands in the settings of the sidecar, not in headers of the deployment: "
        f"register it without {names}, or register its host as an open route"
    )


def _given(lines: FieldLines) -> tuple[dict[str, str], list[str]]:
    """Return the values by name, and what is wrong with names and repetitions."""
    given: dict[str, str] = {}
    problems: list[str] = []
    for raw, value in lines:
        name = raw.decode("latin-1")
        text = value.decode("latin-1").strip(" \t")
        if name not in _FIELDS:
            problems.append(f"{quoted(name)} is not a header of the sidecar; those of a deployment are {_listed()}")
        elif name in given:
            problems.append(f"{name} occurs twice")
        elif not text:
            problems.append(f"{name} is empty; leave it out")
        else:
            given[name] = text
    return given, problems


def _listed() -> str:
    return ", ".join(_FIELDS)

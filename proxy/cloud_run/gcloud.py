"""The gcloud commands of remedies, filled in from the route's URL and the accounts' e-mail addresses. Pure.

What these do not contain is a placeholder in capitals (SERVICE, REGION, PRINCIPAL).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from proxy.quoting import plain

__all__ = [
    "ID_TOKEN_CREATOR",
    "TOKEN_CREATOR",
    "Service",
    "add_audience",
    "grant_chain",
    "grant_impersonation",
    "grant_invoker",
    "logs",
    "revoke_public",
    "service_of",
    "use_http2",
]

ID_TOKEN_CREATOR: Final = "roles/iam.serviceAccountOpenIdTokenCreator"  # noqa: S105 - a name
"""The role that allows minting ID tokens of a service account."""

TOKEN_CREATOR: Final = "roles/iam.serviceAccountTokenCreator"  # noqa: S105 - a name
"""The role that allows minting all tokens of a service account, and being a delegate."""

INVOKER: Final = "roles/run.invoker"

# Both forms of URL, with and without a traffic tag: https://cloud.google.com/run/docs/triggering/https-request
_NUMBERED: Final = re.compile(
    r"(?:[a-z0-9-]+---)?(?P<name>[a-z0-9-]+)-(?P<project>[0-9]{6,})\.(?P<region>[a-z0-9-]+)\.run\.app"
)
_HASHED: Final = re.compile(r"(?:[a-z0-9-]+---)?(?P<name>[a-z0-9-]+)-[a-z0-9]{10}-[a-z]{2,3}\.a\.run\.app")

_ACCOUNT: Final = re.compile(r"[^@\s]+@(?P<project>[a-z0-9-]+)\.iam\.gserviceaccount\.com")


class Service(NamedTuple):
    """A Cloud Run service in a command; placeholders in capitals for what is unknown."""

    name: str = "SERVICE"
    """Its name."""
    region: str = "REGION"
    """Its region, such as `europe-west1`."""
    project: str | None = None
    """Number of its project; None: gcloud uses its configured project."""


def service_of(host: str) -> Service:
    """Return the service that a run.app host name belongs to; placeholders for any other host."""
    if (match := _NUMBERED.fullmatch(host)) is not None:
        return Service(match["name"], match["region"], match["project"])
    if (match := _HASHED.fullmatch(host)) is not None:
        return Service(match["name"])
    return Service()


def grant_invoker(service: Service, principal: str | None) -> str:
    """Return the command that lets `principal` call the service."""
    return _services("add-iam-policy-binding", service, f"--member={_member(principal)}", f"--role={INVOKER}")


def revoke_public(service: Service) -> str:
    """Return the command that makes a public service private."""
    return _services("remove-iam-policy-binding", service, "--member=allUsers", f"--role={INVOKER}")


def use_http2(service: Service) -> str:
    """Return the command that makes Cloud Run speak HTTP/2 to the container."""
    return _services("update", service, "--use-http2")


def add_audience(service: Service, audience: str) -> str:
    """Return the command that makes the service accept tokens for `audience`."""
    return _services("update", service, f"--add-custom-audiences={audience}")


def logs(service: Service) -> str:
    """Return the command that prints the last log entries of the service."""
    return _services("logs read", service, "--limit=50")


def grant_impersonation(caller: str | None, account: str, role: str) -> str:
    """Return the command that grants `caller` a role on the service account `account`."""
    match = _ACCOUNT.fullmatch(account)
    project = [f"--project={match['project']}"] if match is not None else []
    words = [account, *project, f"--member={_member(caller)}", f"--role={role}"]
    return shlex.join(["gcloud", "iam", "service-accounts", "add-iam-policy-binding", *words])


def grant_chain(caller: str | None, delegates: Sequence[str], account: str, role: str) -> tuple[str, ...]:
    """Return one command for each link of the chain caller, delegates, account; the last link needs `role`."""
    links = [caller, *delegates, account]
    pairs = list(pairwise(links))
    roles = [TOKEN_CREATOR] * (len(pairs) - 1) + [role]
    return tuple(
        grant_impersonation(source, target or "", needed) for (source, target), needed in zip(pairs, roles, strict=True)
    )


def _services(verb: str, service: Service, *words: str) -> str:
    known = ["gcloud", "run", "services", *verb.split(), service.name, f"--region={service.region}", *words]
    # `gcloud run` takes the ID of a project only, and a URL has the number.
    found = f" --project=$(gcloud projects describe {service.project} --format='value(projectId)')"
    return shlex.join(known) + (found if service.project else "")


def _member(principal: str | None) -> str:
    if principal is not None and principal.startswith("principal://") and plain(principal) is not None:
        return principal
    if principal is None or "@" not in principal or any(mark.isspace() for mark in principal):
        return "PRINCIPAL"
    return f"{'serviceAccount' if principal.endswith('.gserviceaccount.com') else 'user'}:{principal}"

"""Commands that mend what was found, with as much filled in as the URL and the e-mails tell. Pure.

What they do not tell stands there in capitals (SERVICE, REGION, PRINCIPAL).
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
TOKEN_CREATOR: Final = "roles/iam.serviceAccountTokenCreator"  # noqa: S105 - a name
INVOKER: Final = "roles/run.invoker"

# https://cloud.google.com/run/docs/triggering/https-request: both forms of URL, with a traffic tag or without.
_NUMBERED: Final = re.compile(
    r"(?:[a-z0-9-]+---)?(?P<name>[a-z0-9-]+)-(?P<project>[0-9]{6,})\.(?P<region>[a-z0-9-]+)\.run\.app"
)
_HASHED: Final = re.compile(r"(?:[a-z0-9-]+---)?(?P<name>[a-z0-9-]+)-[a-z0-9]{10}-[a-z]{2,3}\.a\.run\.app")

_ACCOUNT: Final = re.compile(r"[^@\s]+@(?P<project>[a-z0-9-]+)\.iam\.gserviceaccount\.com")


class Service(NamedTuple):
    """A Cloud Run service as commands name it; capitals for what is not known."""

    name: str = "SERVICE"
    region: str = "REGION"
    project: str | None = None
    """Number of the project; None leaves gcloud's own setting."""

    def options(self) -> list[str]:
        """Return the name and the options that say which service."""
        project = [f"--project={self.project}"] if self.project else []
        return [self.name, f"--region={self.region}", *project]


def service_of(host: str) -> Service:
    """Return the service that a run.app host name belongs to, as far as it tells; nothing known for other hosts."""
    if (match := _NUMBERED.fullmatch(host)) is not None:
        return Service(match["name"], match["region"], match["project"])
    if (match := _HASHED.fullmatch(host)) is not None:
        return Service(match["name"])
    return Service()


def grant_invoker(service: Service, principal: str | None) -> str:
    """Return the command that lets `principal` call the service."""
    return _services("add-iam-policy-binding", service, f"--member={_member(principal)}", f"--role={INVOKER}")


def revoke_public(service: Service) -> str:
    """Return the command after which not everybody may call the service any more."""
    return _services("remove-iam-policy-binding", service, "--member=allUsers", f"--role={INVOKER}")


def use_http2(service: Service) -> str:
    """Return the command that has HTTP/2 spoken to the container."""
    return _services("update", service, "--use-http2")


def add_audience(service: Service, audience: str) -> str:
    """Return the command that has the service take tokens for `audience`."""
    return _services("update", service, f"--add-custom-audiences={audience}")


def logs(service: Service) -> str:
    """Return the command that shows what the service wrote last."""
    return _services("logs read", service, "--limit=50")


def grant_impersonation(caller: str | None, account: str, role: str) -> str:
    """Return the command that gives `caller` a role on the service account `account`."""
    match = _ACCOUNT.fullmatch(account)
    project = [f"--project={match['project']}"] if match is not None else []
    words = [account, *project, f"--member={_member(caller)}", f"--role={role}"]
    return shlex.join(["gcloud", "iam", "service-accounts", "add-iam-policy-binding", *words])


def grant_chain(caller: str | None, delegates: Sequence[str], account: str, role: str) -> tuple[str, ...]:
    """Return a command for each link from `caller` by way of `delegates` to `account`; the last needs `role`."""
    links = [caller, *delegates, account]
    pairs = list(pairwise(links))
    roles = [TOKEN_CREATOR] * (len(pairs) - 1) + [role]
    return tuple(
        grant_impersonation(source, target or "", needed) for (source, target), needed in zip(pairs, roles, strict=True)
    )


def _services(verb: str, service: Service, *words: str) -> str:
    return shlex.join(["gcloud", "run", "services", *verb.split(), *service.options(), *words])


def _member(principal: str | None) -> str:
    if principal is not None and principal.startswith("principal://") and plain(principal) is not None:
        return principal
    if principal is None or "@" not in principal or any(mark.isspace() for mark in principal):
        return "PRINCIPAL"
    return f"{'serviceAccount' if principal.endswith('.gserviceaccount.com') else 'user'}:{principal}"

"""Deployments that Restate has and the sidecar refuses: their route is gone, or the lists do not allow them. Pure.

Restate goes on calling such a deployment until it is removed, or allowed again. Where the route is gone, that uses up
attempts of its invocations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from proxy.deployments.records import Deployment
from proxy.deployments.target import leads_to_sidecar, own_lines, split_url
from proxy.errors import RequestRefused
from proxy.quoting import plain
from proxy.routes import OpenMatch, RouteTable
from proxy.routes.open_routes import named_route_refusal

__all__ = ["CalledThroughSidecar", "examine"]

_CLOUD_RUN = ".run.app"


class CalledThroughSidecar(NamedTuple):
    """A deployment whose requests come to the sidecar."""

    deployment: Deployment
    """The deployment."""
    refusal: str | None
    """Why the sidecar refuses its requests; None if it takes them."""


def examine(deployments: Iterable[Deployment], table: RouteTable, sidecar: str) -> list[CalledThroughSidecar]:
    """Return the deployments that are called through the sidecar, by URL.

    These are the ones whose URL is at `sidecar`, and those at `http://HOST` where HOST is in the list of hosts, or is a
    service of Cloud Run: without TLS they work only if Restate sends them to a proxy (RESTATE_HTTP_PROXY).
    """
    found = []
    for deployment in deployments:
        place = _requested(deployment.url, table, sidecar)
        if place is not None:
            found.append(CalledThroughSidecar(deployment, _refusal(deployment, table, *place)))
    return sorted(found, key=lambda one: (one.deployment.url, one.deployment.id))


def _requested(url: str, table: RouteTable, sidecar: str) -> tuple[str, str] | None:
    """Return authority (empty if the path decides) and path of the deployment's requests; None if they do not come."""
    parts = split_url(url)
    if parts is None or plain(url) is None:
        return None
    if leads_to_sidecar(url, sidecar):
        return "", parts.path
    host = (parts.hostname or "").lower()
    allowed = table.open_routes is not None and table.open_routes.allowed.allows_host(host)
    if parts.scheme == "http" and parts.port in (None, 80) and (allowed or host.endswith(_CLOUD_RUN)):
        return host, parts.path
    return None


def _refusal(deployment: Deployment, table: RouteTable, authority: str, path: str) -> str | None:
    if deployment.has_own_authentication:
        return (
            "it has Restate's own Google authentication (--gcp-id-token), and the sidecar refuses its discovery: "
            "register it again without these words"
        )
    if authority and table.open_routes is None:
        return f"{authority} is not in the list hosts of [deployments]"
    lines = own_lines(deployment.headers.items())
    try:
        match = table.find(
            authority.encode(), f"{path.removesuffix('/')}/discover".encode("latin-1", "backslashreplace")
        )
        if isinstance(match, OpenMatch):
            assert table.open_routes is not None  # noqa: S101 - tells the type checker
            table.open_routes.route(match.host, lines)
            return None
    except RequestRefused as exc:
        return str(exc)
    return named_route_refusal(lines) if lines else None

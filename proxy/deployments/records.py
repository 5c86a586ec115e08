"""Deployments and services, read from the JSON of Restate's admin API (version 2 and later). Pure.

Readers raise ValueError for JSON of another shape. Members that are not needed are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Deployment", "Handler", "Registered", "Service", "read_deployment", "read_registered", "read_service"]


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler of a service."""

    name: str
    """Its name."""
    takes: str = ""
    """Restate's description of the input; `""` if there is none."""
    returns: str = ""
    """Restate's description of the output; `""` if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One revision of a service."""

    name: str
    """Its name."""
    kind: str
    """`Service`, `VirtualObject` or `Workflow`."""
    revision: int
    """Number of the revision, from 1."""
    deployment: str
    """Identifier of the deployment that has this revision."""
    handlers: tuple[Handler, ...]
    """Its handlers, sorted by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A deployment that Restate has."""

    id: str
    """Its identifier, `dp_…`."""
    url: str
    """Its URL; `""` if it has none (AWS Lambda)."""
    headers: Mapping[str, str] = field(repr=False)
    """Its additional headers, names in lower case; values may be secrets."""
    services: tuple[tuple[str, int], ...]
    """Name and revision of each service that it was discovered with."""
    is_http1: bool
    """True if Restate calls it over HTTP/1.1."""
    has_own_authentication: bool
    """True if Restate itself adds Google's tokens to its requests (`--gcp-id-token`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What Restate answers to a registration."""

    id: str
    """Identifier of the deployment."""
    is_new: bool
    """False if Restate had a deployment with this URL before."""
    services: tuple[Service, ...]
    """Its services, sorted by name."""


def read_registered(data: Any, status: int) -> Registered:
    """Return the answer to a registration; 201 means that the deployment is new."""
    services = tuple(sorted(map(read_service, _list(data, "services")), key=lambda service: service.name))
    return Registered(id=_text(data, "id"), is_new=status == 201, services=services)


def read_service(data: Any) -> Service:
    """Return a service from its metadata."""
    handlers = sorted(map(_handler, _list(data, "handlers")), key=lambda handler: handler.name)
    return Service(
        name=_text(data, "name"),
        kind=_text(data, "ty"),
        revision=_number(data, "revision"),
        deployment=_text(data, "deployment_id"),
        handlers=tuple(handlers),
    )


def read_deployment(data: Any) -> Deployment:
    """Return a deployment from its metadata."""
    headers = _table(data).get("additional_headers") or {}
    return Deployment(
        id=_text(data, "id"),
        url=_text(data, "uri") if "uri" in data else "",
        headers={str(name).lower(): str(value) for name, value in _table(headers).items()},
        services=tuple((_text(one, "name"), _number(one, "revision")) for one in _list(data, "services")),
        is_http1=str(data.get("http_version", "")).startswith("HTTP/1"),
        has_own_authentication=bool(data.get("auth")),
    )


def _handler(data: Any) -> Handler:
    described = [str(_table(data).get(f"{way}_description") or "") for way in ("input", "output")]
    return Handler(_text(data, "name"), *described)


def _table(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("an object is expected")
    return data


def _list(data: Any, member: str) -> list[Any]:
    found = _table(data).get(member)
    if not isinstance(found, list):
        raise ValueError(f"{member} must be a list")
    return found


def _text(data: Any, member: str) -> str:
    found = _table(data).get(member)
    if not isinstance(found, str):
        raise ValueError(f"{member} must be text")
    return found


def _number(data: Any, member: str) -> int:
    found = _table(data).get(member)
    if not isinstance(found, int):
        raise ValueError(f"{member} must be a number")
    return found

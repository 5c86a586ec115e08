"""What a registration changes: services and handlers that are added, changed or removed, and headers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from proxy.deployments.records import Deployment, Handler, Registered, Service
from proxy.quoting import NOT_SHOWN, plain

__all__ = ["Change", "Changes", "HandlerChange", "ServiceChange", "changed_calls", "compare"]

Change: TypeAlias = Literal["added", "changed", "removed", "same"]
"""What happens to a handler."""


class HandlerChange(NamedTuple):
    """A handler of a service, and what happens to it."""

    handler: Handler
    """As it will be; as it was if it is removed."""
    change: Change
    """What happens to it."""
    before: Handler | None = None
    """As it was, if it is changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceChange:
    """A service that is added or updated."""

    service: Service
    """As it will be."""
    before: Service | None
    """The revision that Restate has now; None if the service is new."""
    moved_from: str
    """URL or identifier of the deployment that has it now; `""` if it is new or stays where it is."""
    handlers: tuple[HandlerChange, ...]
    """All its handlers, sorted by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a registration does to services."""

    added: tuple[ServiceChange, ...]
    """Services that Restate does not have."""
    updated: tuple[ServiceChange, ...]
    """Services that Restate has; they get a new revision."""
    removed: tuple[str, ...]
    """Names of services that the deployment had and no longer has."""


def compare(
    registered: Registered,
    known: Mapping[str, Service],
    replaced: Deployment | None,
    urls: Mapping[str, str],
) -> Changes:
    """Return the changes of a registration.

    `known` has Restate's services now, by name, `replaced` the deployment that is overwritten, if there is one, and
    `urls` the URLs of deployments by their identifiers.
    """
    added: list[ServiceChange] = []
    updated: list[ServiceChange] = []
    for service in registered.services:
        before = known.get(service.name)
        moved = "" if before is None or before.deployment == registered.id else before.deployment
        change = ServiceChange(
            service=service,
            before=before,
            moved_from=urls.get(moved) or moved,
            handlers=_handlers(() if before is None else before.handlers, service.handlers, is_new=before is None),
        )
        (added if before is None else updated).append(change)
    names = {service.name for service in registered.services}
    had = () if replaced is None else replaced.services
    removed = sorted({name for name, _ in had} - names)
    return Changes(added=tuple(added), updated=tuple(updated), removed=tuple(removed))


def changed_calls(known: Deployment, url: str, headers: Mapping[str, str], *, http1: bool) -> list[str]:
    """Return a phrase for everything in which a registration changes how Restate calls a deployment.

    `url`, `headers` and `http1` are those of the registration. No value of a header is in the phrases.
    """
    phrases = []
    # To Restate, http:// and https:// with the same host and path are one deployment.
    was, will = (of.partition("://")[0] for of in (known.url, url))
    if was != will:
        phrases.append(f"{will}:// is used instead of {was}://")
    for name in sorted(known.headers.keys() | headers.keys()):
        shown = name if plain(name) is not None else NOT_SHOWN
        if name not in headers:
            phrases.append(f"{shown} is removed")
        elif name not in known.headers:
            phrases.append(f"{shown} is added")
        elif known.headers[name] != headers[name]:
            phrases.append(f"{shown} is changed")
    if known.has_own_authentication:
        phrases.append("Restate's own Google authentication is removed")
    if known.is_http1 != http1:
        phrases.append(f"HTTP/1.1 is {'used' if http1 else 'no longer used'}")
    return phrases


def _handlers(before: Iterable[Handler], after: Iterable[Handler], *, is_new: bool) -> tuple[HandlerChange, ...]:
    old, new = ({handler.name: handler for handler in listed} for listed in (before, after))
    changes = []
    for name in sorted(old.keys() | new.keys()):
        change: Change = "same"
        if name not in new:
            change = "removed"
        elif name not in old:
            change = "same" if is_new else "added"
        elif old[name] != new[name]:
            change = "changed"
        before_it = old[name] if change == "changed" else None
        changes.append(HandlerChange(new.get(name) or old[name], change, before_it))
    return tuple(changes)

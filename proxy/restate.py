"""What Restate expects of a deployment (restate 1.7, service-client and invoker).

* `GET {prefix}/discover` asks for the manifest. A person waits for it and sees the answer, body included.
* `POST {prefix}/invoke/{service}/{handler}` runs a handler. Nobody sees the body of a failed one.
* `POST {prefix}/serdes/…` serves the UI. It is no discovery: a UI can wait and repeat.

An invocation that gets 429 or 503 is tried again. With `retry-after` that costs it no attempt; without, three of them
pause it where its retry policy says `max-attempts = 3`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from proxy.errors import Transient, retry_after

__all__ = ["DISCOVERY_ACCEPT", "is_discovery", "is_manifest", "manifest_services", "missing_retry_after"]

_MANIFEST: Final = "application/vnd.restate.endpointmanifest.v{}+json"

DISCOVERY_ACCEPT: Final = ", ".join(_MANIFEST.format(version) for version in range(1, 5)).encode()
"""What Restate accepts as the answer to a discovery."""

_IS_MANIFEST: Final = re.compile(re.escape(_MANIFEST).replace(r"\{\}", "[0-9]+"))


_RETRIED_FOR_FREE: Final = frozenset((429, 503))
"""Statuses that use no attempt of an invocation up, if `retry-after` comes with them."""


def missing_retry_after(
    status: int, fields: list[tuple[bytes, bytes, bool]], random_fraction: float
) -> tuple[bytes, bytes, bool] | None:
    """Return the `retry-after` line that a response head of an upstream lacks; None where it has one or needs none.

    It asks for as long as our own transient answers do; `random_fraction` in [0, 1) spreads it.
    """
    if status not in _RETRIED_FOR_FREE or any(name == b"retry-after" for name, _, _ in fields):
        return None
    return (b"retry-after", retry_after(Transient.retry_after_seconds, random_fraction), False)


def is_discovery(method: bytes, path: bytes) -> bool:
    """Return whether this is a discovery; `path` may have a prefix and a query."""
    return method == b"GET" and path.partition(b"?")[0].endswith(b"/discover")


def is_manifest(content_type: str) -> bool:
    """Return whether this content type is that of a manifest, of whatever version."""
    return _IS_MANIFEST.fullmatch(content_type.partition(";")[0].strip().lower()) is not None


def manifest_services(body: bytes) -> dict[str, list[str]]:
    """Return the handlers of each service that a manifest lists, by name; ValueError if it is no manifest."""
    try:
        manifest = json.loads(body)
        return {_name(service): [_name(handler) for handler in service["handlers"]] for service in manifest["services"]}
    except (ValueError, KeyError, TypeError, RecursionError):  # Not chained: the error could hold the answer.
        raise ValueError("it is no manifest of services") from None


def _name(entry: Any) -> str:
    name = entry["name"]
    if not isinstance(name, str):
        raise TypeError
    return name

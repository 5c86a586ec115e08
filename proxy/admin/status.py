"""What the admin port tells in JSON, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from proxy.routes import Route

__all__ = ["JSON", "json_list", "route_settings"]

JSON: Final = "application/json; charset=utf-8"
"""The content type."""


def json_list(items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a JSON array of objects, one object a piece."""
    separator = "["
    for item in items:
        yield f"{separator}\n{json.dumps(item, ensure_ascii=False)}"
        separator = ","
    yield "[]\n" if separator == "[" else "\n]\n"


def route_settings(route: Route) -> dict[str, Any]:
    """Return the settings of a route, under the names that they have in the settings file."""
    return {
        "name": route.name,
        "url": f"{route.origin}{route.base_path}",
        "gcp_id_token": route.signed,
        "gcp_audience": route.audience if route.signed else None,
        "gcp_impersonate_service_account": route.impersonate,
        "gcp_delegates": list(route.delegates),
    }

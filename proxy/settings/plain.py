"""The settings as plain values, which is what a sidecar runs on.

pydantic judges settings (`model`); it need not stay to hold them. It and what comes with it are 9 MiB of resident
memory, so nothing that runs for long imports more of this room than this module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from proxy.http2.engine import EngineName
from proxy.routes import Route, RouteTable, parse_upstream

__all__ = ["PlainSettings", "route_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSettings:
    """Settings that have been judged; `model.Settings` says what each means, and has the same names and defaults."""

    unsafe_listen: bool
    listen: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    admin: str
    workers: int
    drain_timeout: float
    upstream_ca: Path | None
    connect_timeout: float
    mint_timeout: float
    stream_wait_timeout: float
    max_upstream_connections: int
    ping_interval: float
    ping_timeout: float
    upstream_idle_timeout: float
    add_retry_after: bool
    http2_engine: EngineName
    max_concurrent_streams: int
    stream_window: int
    queued_octets: int
    replay_octets: int
    max_field_section: int
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "console", "json"]
    access_log: bool
    routes: tuple[Route, ...]

    @classmethod
    def from_json(cls, text: str) -> PlainSettings:
        """Return the settings that `model.Settings.to_json` wrote. They are not judged again."""
        values = json.loads(text)
        authority = values["upstream_ca"]
        plain = {
            "listen": tuple(values["listen"]),
            "allowed_hosts": tuple(values["allowed_hosts"]),
            "upstream_ca": None if authority is None else Path(authority),
            "routes": tuple(route_of(name, route) for name, route in values["routes"].items()),
        }
        return cls(**{**values, **plain})

    def route_table(self) -> RouteTable:
        """Return the routes for look-up by path."""
        return RouteTable(self.routes)


def route_of(name: str, settings: Mapping[str, Any]) -> Route:
    """Return the route of these `model.RouteSettings`, with the URL taken apart and the audience filled in."""
    origin, base_path = parse_upstream(settings["url"])
    return Route(
        name=name,
        origin=origin,
        base_path=base_path,
        signed=settings["gcp_id_token"],
        audience=settings["gcp_audience"] or "",
        impersonate=settings["gcp_impersonate_service_account"],
        delegates=tuple(settings["gcp_delegates"]),
    )

"""Settings of a worker with one unsigned route, as the process that serves is handed them."""

from __future__ import annotations

from proxy.settings.model import RouteSettings, Settings
from proxy.settings.plain import PlainSettings

__all__ = ["plain_settings"]


def plain_settings(**more: object) -> PlainSettings:
    """Return settings with free ports and a route `svc` without a service, and with `more`."""
    routes = {"svc": RouteSettings(url="http://127.0.0.1:1", gcp_id_token=False, allow_http=True)}
    given: dict[str, object] = {"listen": ("127.0.0.1:0",), "admin": "127.0.0.1:0", "access_log": True, **more}
    return Settings.model_validate({"routes": routes, **given}).plain()

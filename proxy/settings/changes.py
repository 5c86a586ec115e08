"""What new settings change, compared with those in force, and what of it takes effect only with a restart."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.settings.plain import PlainSettings

__all__ = ["RELOADABLE", "STAYS_WITH", "Changes", "log_refused", "log_reloaded"]

_log: Final = structlog.get_logger("settings")

_MOST_SHOWN: Final = 100
"""Routes, or problems, in one line: log collectors cut lines of some 100 KiB, and one of MiB is dropped here."""

RELOADABLE: Final = frozenset(
    {
        "access_log",
        "add_retry_after",
        "allowed_hosts",
        "cancels_per_minute",
        "connect_timeout",
        "deployments",
        "drain_timeout",
        "first_request_timeout",
        "head_timeout",
        "http1_octets_per_second",
        "log_format",
        "log_level",
        "max_connection_age",
        "max_connections",
        "max_upstream_connection_age",
        "max_upstream_connections",
        "mint_timeout",
        "ping_interval",
        "ping_timeout",
        "queued_octets",
        "replay_octets",
        "restate_identity_keys",
        "routes",
        "stall_timeout",
        "stream_wait_timeout",
        "tls_certificate",
        "tls_client_ca",
        "tls_key",
        "upstream_ca",
        "upstream_cancels_per_minute",
        "upstream_idle_timeout",
        "upstream_proxy",
    }
)
"""Settings that a reload changes. All others need a restart: they are parts of sockets, processes and connections."""

_TLS_ADDRESSES: Final = frozenset({"tls_listen", "unsafe_listen"})
_ADDRESSES: Final = _TLS_ADDRESSES | {"listen", "socket_mode", "socket_user", "socket_group"}

STAYS_WITH: Final = {
    "tls_certificate": _TLS_ADDRESSES,
    "tls_key": _TLS_ADDRESSES,
    "tls_client_ca": _TLS_ADDRESSES,
    "restate_identity_keys": _ADDRESSES,
    "allowed_hosts": _ADDRESSES | {"admin"},
    "queued_octets": frozenset({"stream_window"}),
}
"""Settings that a reload does not change while one of these, which need a restart, waits for it.

A value that is right for the new addresses could open the old ones, which stay in force, to everybody.
"""

_ORIGIN: Final = {"config", "config_state"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The differences between two settings, by name."""

    routes_added: tuple[str, ...]
    """Names of routes that there were not before."""
    routes_changed: tuple[str, ...]
    """Names of routes with another URL or authentication."""
    routes_removed: tuple[str, ...]
    """Names of routes that are gone."""
    settings: tuple[str, ...]
    """Settings other than routes that a reload changes."""
    need_restart: tuple[str, ...]
    """Settings that differ and keep the value in force until a restart."""
    in_force: PlainSettings
    """What is in force after the reload."""

    @classmethod
    def between(cls, running: PlainSettings, read: PlainSettings) -> Changes:
        """Compare the settings in force with those that were read."""
        before = {route.name: route for route in running.routes}
        after = {route.name: route for route in read.routes}
        names = [field.name for field in fields(PlainSettings) if field.name not in _ORIGIN | {"routes"}]
        differing = [name for name in names if getattr(running, name) != getattr(read, name)]
        stay = {name for name in differing if name not in RELOADABLE}
        need_restart = tuple(
            name for name in differing if name in stay or not stay.isdisjoint(STAYS_WITH.get(name, ()))
        )
        return cls(
            routes_added=tuple(name for name in after if name not in before),
            routes_changed=tuple(name for name in after if before.get(name, after[name]) != after[name]),
            routes_removed=tuple(name for name in before if name not in after),
            settings=tuple(name for name in differing if name not in need_restart),
            need_restart=need_restart,
            in_force=replace(read, **{name: getattr(running, name) for name in need_restart}),
        )

    def __bool__(self) -> bool:
        """Return True if anything is in force that was not before."""
        return bool(self.routes_added or self.routes_changed or self.routes_removed or self.settings)


def log_reloaded(changes: Changes, *, requested: bool, **more: Any) -> None:
    """Write what a reload has changed; for one that changed nothing, only if it was requested."""
    where = _file(changes.in_force.config)
    if changes:
        _log.info(
            "settings reloaded",
            **where,
            **_names("routes_added", changes.routes_added),
            **_names("routes_changed", changes.routes_changed),
            **_names("routes_removed", changes.routes_removed),
            **_names("settings", changes.settings),
            **more,
        )
    elif requested:
        _log.info("settings reloaded: nothing has changed", **where, **more)
    if changes.routes_removed:
        _log.warning(
            "routes removed: new requests to them get 404; remove or register again what Restate has under their paths",
            **_names("routes", changes.routes_removed),
        )
    if changes.need_restart:
        _log.warning("changed settings need a restart", **where, **_names("settings", changes.need_restart))


def log_refused(problems: tuple[str, ...], *, config: Path | None, **more: Any) -> None:
    """Write why the settings in force stay."""
    _log.error("settings refused: those in force stay", **_file(config), **_names("problems", problems), **more)


def _file(config: Path | None) -> dict[str, str]:
    """Return the field `file`; without a file, flags and environment cannot have changed since the start."""
    return {"file": "none: all settings are flags and variables of the start" if config is None else str(config)}


def _names(field: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    shown = list(names[:_MOST_SHOWN])
    more = len(names) - len(shown)
    return {field: [*shown, f"and {more} more"] if more else shown} if names else {}

"""The settings as plain values: what a sidecar runs on, and their JSON form between processes.

pydantic validates settings (`model`) in a process of its own (`reading`). pydantic and its dependencies take 9 MiB of
resident memory, so a process that serves does not import them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints
from zlib import crc32

from proxy.http2.engine import EngineName
from proxy.routes import AllowLists, Origin, Route, RouteTable

__all__ = ["PlainSettings", "format_version"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSettings:
    """Validated settings. `model.Settings` explains each, and has the same names; a test compares names and types.

    `config` and `config_state` say which file they were read from.
    """

    unsafe_listen: bool
    listen: tuple[str, ...]
    socket_mode: str
    socket_user: str | None
    socket_group: str | None
    max_connections: int
    cancels_per_minute: int
    first_request_timeout: float
    head_timeout: float
    http1_octets_per_second: int
    max_connection_age: float
    tls_certificate: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    tls_listen: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    restate_identity_keys: tuple[str, ...]
    admin: str
    takeover_socket: str | None
    workers: int
    drain_timeout: float
    upstream_ca: Path | None
    upstream_proxy: str | None = field(repr=False)
    connect_timeout: float
    mint_timeout: float
    stream_wait_timeout: float
    max_upstream_connections: int
    upstream_cancels_per_minute: int
    max_upstream_connection_age: float
    ping_interval: float
    ping_timeout: float
    upstream_idle_timeout: float
    add_retry_after: bool
    http2_engine: EngineName
    max_concurrent_streams: int
    stream_window: int
    queued_octets: int
    stall_timeout: float
    replay_octets: int
    max_field_section: int
    max_interim_heads: int
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "console", "json"]
    access_log: bool
    deployments: AllowLists
    routes: tuple[Route, ...]
    config: Path | None = None
    """The settings file that was read, as an absolute path; None if there is none. Not a setting of the file."""
    config_state: tuple[int, ...] = ()
    """The state (`file_state`) of that file when it was read; empty if it is not a regular file."""

    def to_json(self) -> str:
        """Return all values and `format_version` as JSON; in ASCII, because paths need not be UTF-8 (PEP 383)."""
        return json.dumps({"version": format_version(), "settings": _encode(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> PlainSettings:
        """Return the settings that `to_json` wrote. ValueError for another version, field or type.

        Types are checked, the rules of the model are not. No value is quoted in the error.
        """
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("version") != format_version():
            raise ValueError(f"they are not in version {format_version()} of the format")
        settings = _decode(cls, document.get("settings"), "settings")
        assert isinstance(settings, cls)  # noqa: S101 - tells the type checker
        return settings

    def route_table(self) -> RouteTable:
        """Return the routes for lookup, named and open."""
        return RouteTable(self.routes, self.deployments)


_KINDS: Final = (PlainSettings, AllowLists, Route, Origin)
"""What the JSON form has as objects."""


@cache
def format_version(kinds: tuple[Any, ...] = _KINDS) -> int:
    """Return a number for the JSON form, another one if a field is added, removed, renamed or gets another type.

    After an upgrade on disk, a running sidecar must not take what a newer program wrote for its own.
    """
    return crc32(repr([_hints(kind) for kind in kinds]).encode())


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Origin):
        return value._asdict()
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Return `value`, of JSON, as the type `kind`; ValueError that names `where` if it is of another type."""
    if kind in _KINDS:
        hints = _hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise ValueError(f"{where} has other fields than {', '.join(hints)}")
        return kind(**{name: _decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    if kind is Path and isinstance(value, str):
        return Path(value)
    origin = get_origin(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(get_args(kind)[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if origin is UnionType:
        return None if value is None else _decode(get_args(kind)[0], value, where)
    if type(value) is kind or (origin is Literal and value in get_args(kind)):
        return value
    raise ValueError(f"{where} has the wrong type: {type(value).__name__}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of a class, by name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init} if is_dataclass(kind) else hints

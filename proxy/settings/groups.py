"""The settings by heading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["GROUPS", "TABLES"]

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Listening": (
        "listen",
        "unsafe_listen",
        "socket_mode",
        "socket_user",
        "socket_group",
        "max_connections",
        "cancels_per_minute",
        "first_request_timeout",
        "head_timeout",
        "http1_octets_per_second",
        "max_connection_age",
        "tls_certificate",
        "tls_key",
        "tls_client_ca",
        "tls_listen",
        "allowed_hosts",
        "restate_identity_keys",
        "admin",
        "takeover_socket",
        "workers",
        "drain_timeout",
    ),
    "Upstream": (
        "upstream_ca",
        "upstream_proxy",
        "connect_timeout",
        "mint_timeout",
        "stream_wait_timeout",
        "max_upstream_connections",
        "upstream_cancels_per_minute",
        "max_upstream_connection_age",
        "ping_interval",
        "ping_timeout",
        "upstream_idle_timeout",
        "add_retry_after",
    ),
    "HTTP/2 and memory": (
        "http2_engine",
        "max_concurrent_streams",
        "stream_window",
        "queued_octets",
        "stall_timeout",
        "replay_octets",
        "max_field_section",
        "max_interim_heads",
    ),
    "Logging": ("log_level", "log_format", "access_log"),
}
"""Every setting that is no table by heading, in the order of `--help` and the sample file."""

TABLES: Final = ("deployments", "routes")
"""The settings that are tables in a file."""

"""How the other proxies are set up for the sidecar's work: h2c in, a token added, verified TLS and ALPN h2 out. Pure.

Each gets one worker, no access log, the sidecar's windows (1 MiB a stream, 16 MiB a connection) where it has such
settings, limits that the load does not reach, and nothing to do that the sidecar does not: no forwarded-for fields, no
request ids. They forward the path as it is; the sidecar finds its route by the path and rewrites it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Way", "envoy", "haproxy", "nghttpx"]

_STREAM_WINDOW = 1 << 20
_CONNECTION_WINDOW = 16 << 20
_STREAMS = 1024
_PLENTY = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From where to where, and with what."""

    port: int
    """Where the proxy listens on 127.0.0.1, h2c."""
    upstream_port: int
    """Where the upstream listens on 127.0.0.1; its certificate is good for 127.0.0.1 and localhost."""
    ca_file: Path
    authorization: str
    """The value of x-serverless-authorization: `Bearer …`."""

    @property
    def authority(self) -> str:
        """The upstream's, as it is to see it."""
        return f"127.0.0.1:{self.upstream_port}"


def nghttpx(way: Way) -> str:
    """Return nghttpx.conf. One process, one thread; it verifies names alone, hence `sni`."""
    return f"""\
frontend=127.0.0.1,{way.port};no-tls
backend=127.0.0.1,{way.upstream_port};;proto=h2;tls;sni=localhost
cacert={way.ca_file}
workers=1
single-process=yes
single-thread=yes
host-rewrite=yes
add-request-header=x-serverless-authorization: {way.authorization}
frontend-http2-max-concurrent-streams={_STREAMS}
frontend-http2-window-size={_STREAM_WINDOW}
frontend-http2-connection-window-size={_CONNECTION_WINDOW}
backend-http2-window-size={_STREAM_WINDOW}
backend-http2-connection-window-size={_CONNECTION_WINDOW}
no-via=yes
no-add-x-forwarded-proto=yes
no-location-rewrite=yes
no-server-rewrite=yes
no-server-push=yes
no-ocsp=yes
log-level=ERROR
"""


def haproxy(way: Way) -> str:
    """Return haproxy.cfg.

    It compares host names with DNS names alone, hence `verifyhost localhost`. Without room to rewrite, it answers 500
    to a request whose body has filled the buffer before the token is added.
    """
    return f"""\
global
    nbthread 1
    maxconn 4000
    tune.bufsize 32768
    tune.maxrewrite 4096
    tune.h2.initial-window-size {_STREAM_WINDOW}
    tune.h2.max-concurrent-streams {_STREAMS}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-request 1h
    http-reuse always
frontend restate
    bind 127.0.0.1:{way.port} proto h2
    http-request set-header host {way.authority}
    http-request set-header x-serverless-authorization "{way.authorization}"
    default_backend cloud_run
backend cloud_run
    server service 127.0.0.1:{way.upstream_port} ssl verify required ca-file {way.ca_file} verifyhost localhost alpn h2
"""


def envoy(way: Way) -> str:
    """Return Envoy's bootstrap as JSON. Its circuit breakers (1,024 requests) are raised, its time-outs off."""
    http2 = {
        "max_concurrent_streams": _STREAMS,
        "initial_stream_window_size": _STREAM_WINDOW,
        "initial_connection_window_size": _CONNECTION_WINDOW,
    }
    listener = {
        "name": "restate",
        "address": _socket_address(way.port),
        "filter_chains": [{"filters": [_typed(_HTTP, _connection_manager(way, http2), "h2c")]}],
    }
    bootstrap = {"static_resources": {"listeners": [listener], "clusters": [_cluster(way, http2)]}}
    return json.dumps(bootstrap, indent=1)


_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = f"{_EXTENSIONS}.filters.http.router.v3.Router"
_TLS = f"{_EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"
_HTTP_OPTIONS = f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"


def _connection_manager(way: Way, http2: dict[str, Any]) -> dict[str, Any]:
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "cloud_run", "timeout": "0s", "host_rewrite_literal": way.authority},
    }
    token = {"key": "x-serverless-authorization", "value": way.authorization}
    return {
        "stat_prefix": "restate",
        "codec_type": "HTTP2",
        "http2_protocol_options": http2,
        "stream_idle_timeout": "0s",
        "generate_request_id": False,
        "skip_xff_append": True,
        "server_header_transformation": "PASS_THROUGH",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
            "request_headers_to_add": [{"header": token, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        },
        "http_filters": [_typed(_ROUTER, {"suppress_envoy_headers": True}, "envoy.filters.http.router")],
    }


def _cluster(way: Way, http2: dict[str, Any]) -> dict[str, Any]:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _PLENTY)
    names = [{"san_type": "IP_ADDRESS", "matcher": {"exact": "127.0.0.1"}}]
    tls = {
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {
                "trusted_ca": {"filename": str(way.ca_file)},
                "match_typed_subject_alt_names": names,
            },
        }
    }
    endpoint = {"endpoint": {"address": _socket_address(way.upstream_port)}}
    return {
        "name": "cloud_run",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "cloud_run", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": _typed(_TLS, tls, "envoy.transport_sockets.tls"),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP_OPTIONS,
                "explicit_http_config": {"http2_protocol_options": http2},
            }
        },
    }


def _socket_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _typed(kind: str, config: dict[str, Any], name: str) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": kind, **config}}

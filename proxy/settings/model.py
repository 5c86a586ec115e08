"""All settings: names, units, defaults, descriptions and rules.

The descriptions are the reference: `--help`, the sample file and the JSON Schema are generated from them. A rule about
two settings is a validator of the later one. Validators run in field order, so a bad value does not hide problems with
other settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from proxy.http2.engine import EngineName
from proxy.network.address import parse_address, parse_address_or_off, parse_host_name
from proxy.request_identity import check_key
from proxy.routes import RouteTable, check_name
from proxy.settings.deployments import DeploymentSettings
from proxy.settings.peers import PeerSettings
from proxy.settings.plain import PlainSettings
from proxy.settings.route import FROZEN, RouteSettings
from proxy.settings.values import (
    Octets,
    Seconds,
    bindable,
    bindable_tls,
    certified,
    distinct,
    http_proxy,
    local_name,
    permissions,
    unix_socket,
)

__all__ = ["DeploymentSettings", "RouteSettings", "Settings"]

File = Annotated[Path, Field(strict=False)]


class Settings(PeerSettings):
    """All settings, validated and immutable."""

    model_config = FROZEN

    unsafe_listen: bool = Field(
        default=False,
        description=(
            "Allow listening on addresses that other machines reach, not only on loopback and Unix sockets. "
            "Every client that reaches the port can call the services with the sidecar's identity, unless "
            "restate_identity_keys says which may."
        ),
    )
    listen: Annotated[tuple[Annotated[str, AfterValidator(bindable)], ...], AfterValidator(distinct)] = Field(
        default=("127.0.0.1:9081",),
        json_schema_extra={"minItems": 1},
        description=(
            "Where Restate connects: HOST:PORT, [IPV6]:PORT or unix:/path; several are possible. "
            "9081 stands beside the 9080 of Restate's SDKs."
        ),
    )
    socket_mode: Annotated[str, AfterValidator(permissions)] = Field(
        default="0660",
        description=(
            "Permissions of the Unix sockets that listen and admin name, in octal. Connecting takes write permission: "
            "by default the user of the sidecar and its group have it."
        ),
    )
    socket_user: Annotated[str, AfterValidator(local_name)] | None = Field(
        default=None,
        examples=["restate"],
        description=(
            "User that owns these Unix sockets, by name or number; unset means that of the process. "
            "Only root can name another one."
        ),
    )
    socket_group: Annotated[str, AfterValidator(local_name)] | None = Field(
        default=None,
        examples=["restate"],
        description=(
            "Group of these Unix sockets, by name or number; unset means that of the process. "
            "Name one that Restate is in if it runs as another user; only root can name one that the sidecar is not in."
        ),
    )
    max_connections: int = Field(
        default=4_096,
        ge=1,
        le=1_000_000,
        json_schema_extra={"x-unit": "connections"},
        description=(
            "Connections that clients may have open, divided among the workers. "
            "Above it, those that have sent no request give way to new ones, then idle ones, "
            "then one of the address that has most, if the new one's has less than half as many; else it is closed. "
            "Restate needs one for some 90 requests, over HTTP/1.1 one for each."
        ),
    )
    max_connection_age: Seconds = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description=(
            "After how long a connection of a client ends, gracefully and up to a quarter earlier; 0 means never. "
            "Set it with replicas behind one address: Restate keeps its connections, and a new one would get none."
        ),
    )
    tls_certificate: File | None = Field(
        default=None,
        examples=["tls.crt"],
        description=(
            "PEM file of the certificate of tls_listen, with the authorities between it and the root. "
            "It takes effect within seconds when it or the key is replaced, for new connections."
        ),
    )
    tls_key: File | None = Field(
        default=None, examples=["tls.key"], description="PEM file of its private key, not encrypted."
    )
    tls_client_ca: File | None = Field(
        default=None,
        examples=["clients-ca.pem"],
        description=(
            "PEM file of the authorities of clients: only those with a certificate of one of them are served on "
            "tls_listen (mTLS). Restate has none; a service mesh, or a proxy beside it, can have one."
        ),
    )
    tls_listen: Annotated[tuple[Annotated[str, AfterValidator(bindable_tls)], ...], AfterValidator(certified)] = Field(
        default=(),
        examples=[["127.0.0.1:9443"]],
        description=(
            "Where clients connect with TLS 1.2 or newer, by HTTP/2 or HTTP/1.1 (ALPN), beside listen. "
            "For deployments that are registered as https://."
        ),
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(parse_host_name)], ...] = Field(
        default=(),
        examples=[["sidecar.internal.example.com"]],
        description=(
            "Host names that HTTP/1.1 requests on loopback may have beside localhost and host.docker.internal. "
            "Any other could be a web page's own that leads here (DNS rebinding), and is refused."
        ),
    )
    restate_identity_keys: tuple[Annotated[str, AfterValidator(check_key)], ...] = Field(
        default=(),
        examples=[["publickeyv1_H4B8yKogWbQfathRbhskc5TawpProvQAYAXCQxnifjpZ"]],
        description=(
            "Public keys of the Restate servers whose requests are taken, as each logs its own at its start; all other "
            "requests get 401. "
            "A Restate signs if it has request-identity-private-key-pem-file. List the old and the new key while one "
            "replaces the other."
        ),
    )
    admin: str = Field(
        default="127.0.0.1:9091",
        description=(
            "Where health, metrics, routes and the status page are served, or `off`. "
            "Any address is allowed: probes come from outside the pod, and nothing there is secret or changes anything."
        ),
    )
    takeover_socket: Annotated[str, AfterValidator(unix_socket)] | None = Field(
        default=None,
        examples=["unix:/run/cloudrun-sidecar.sock"],
        description=(
            "Unix socket by which a sidecar that starts takes over the listening sockets of the one that runs, "
            "which then drains: no connection is refused. "
            "Both need this setting and the same user. With sockets from systemd it is not used: they stay open anyway."
        ),
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        json_schema_extra={"x-unit": "processes"},
        description=(
            "Processes that share the connections evenly. "
            "Each can use one processor, and has tokens, connections and limits of its own."
        ),
    )
    drain_timeout: Seconds = Field(
        default=30.0,
        ge=0,
        le=3600,
        description=(
            "How long live streams may take to finish after SIGTERM; the rest is reset then. "
            "Keep it below the grace period of whatever sends the signal."
        ),
    )
    upstream_ca: File | None = Field(
        default=None,
        examples=["private-ca.pem"],
        description=(
            "PEM file of a certificate authority to trust beside the system's; verification is never off. "
            "Relative to the file that names it, else to the working directory."
        ),
    )
    upstream_proxy: Annotated[str, AfterValidator(http_proxy)] | None = Field(
        default=None,
        repr=False,
        examples=["http://proxy.internal:3128"],
        description=(
            "HTTP proxy through which services are reached (CONNECT): http://HOST:PORT. "
            "A login may stand in it, http://USER:PASSWORD@HOST:PORT, and is never shown; give it in the environment "
            "then, since other users can read flags. Hosts in the variable no_proxy, loopback and http:// upstreams "
            "are reached directly. Calls to Google use the variables https_proxy and no_proxy."
        ),
    )
    connect_timeout: Seconds = Field(
        default=5.0,
        gt=0,
        le=60,
        description=(
            "Name resolution, TCP and TLS of an upstream connection together. "
            "Restate's signature on a request is good for a minute, so it must not wait for long."
        ),
    )
    mint_timeout: Seconds = Field(
        default=5.0,
        gt=0,
        le=60,
        description=(
            "How long a request may wait for its ID token. "
            "A request without a token is never sent: it gets 503 then, and Restate repeats it."
        ),
    )
    stream_wait_timeout: Seconds = Field(
        default=5.0,
        gt=0,
        le=60,
        description="How long a request may wait for an upstream stream while all are taken. It gets 503 then.",
    )
    max_upstream_connections: int = Field(
        default=64,
        ge=1,
        le=4096,
        json_schema_extra={"x-unit": "connections"},
        description="Connections to one origin, in each worker. Cloud Run takes about 100 streams on each.",
    )
    max_upstream_connection_age: Seconds = Field(
        default=600.0,
        ge=1,
        le=86_400,
        description=(
            "After how long an upstream connection is replaced by one to a newly resolved address; up to a quarter "
            "earlier. Its streams finish. Bounds how long requests go to an address that a name has no more."
        ),
    )
    ping_interval: Seconds = Field(
        default=30.0,
        ge=10,
        le=3600,
        description=(
            "Time between PINGs to an upstream while streams are live; finds dead connections. "
            "Google answers more frequent ones with ENHANCE_YOUR_CALM."
        ),
    )
    ping_timeout: Seconds = Field(
        default=15.0,
        gt=0,
        le=600,
        description="How long an upstream may take to answer a PING before its connection is closed.",
    )
    upstream_idle_timeout: Seconds = Field(
        default=180.0,
        ge=1,
        description=(
            "How long an upstream connection is kept without a stream. "
            "Google closes it after some four minutes: being first avoids sending into a closing connection."
        ),
    )
    add_retry_after: bool = Field(
        default=True,
        description=(
            "Add retry-after, 1 to 5 seconds, to a 429 or 503 of Cloud Run that has none. "
            "Without it these use up Restate's attempts while there is no instance: work would fail, not wait."
        ),
    )
    http2_engine: EngineName = Field(
        default="auto",
        description=(
            "HTTP/2 library: nghttp2 is compiled and fast, h2 is portable, auto takes nghttp2 if it is available."
        ),
    )
    max_concurrent_streams: int = Field(
        default=1024,
        ge=128,
        le=65_535,
        json_schema_extra={"x-unit": "streams"},
        description="Streams that a client may have open on one connection. Restate uses up to 128, hence the minimum.",
    )
    stream_window: Octets = Field(
        default=1 << 20,
        ge=16_384,
        le=(1 << 31) - 1,
        description=(
            "How much of a stream may be under way unacknowledged, each way. "
            "Bounds the memory that a slow reader takes; smaller ones slow down distant services."
        ),
    )
    queued_octets: Octets = Field(
        default=256 << 20,
        ge=64 << 10,
        le=1 << 40,
        description=(
            "Cap on all octets that wait in one worker, the heads and trailers of requests and 4 KiB for each exchange "
            "included. "
            "Near it, new requests of a client or service with more than its share get 503; "
            "at it, exchanges of the address or service with the most octets are ended."
        ),
    )
    replay_octets: Octets = Field(
        default=64 << 10,
        ge=0,
        le=16 << 20,
        description=(
            "How much of a request is held so that it can be sent again when Cloud Run provably did not process it. "
            "Larger requests get 503, and Restate repeats them."
        ),
    )
    max_field_section: Octets = Field(
        default=16 << 10,
        ge=16 << 10,
        le=1 << 20,
        description=(
            "Greatest head or trailer section taken, counted as in RFC 9113, 6.5.2: name + value + 32 a line. "
            "16 KiB is what Restate's own HTTP library takes (hyper, since 1.3.1). Restate's heads have some 2 KiB, "
            "and what a deployment's additional headers add."
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The least severe log lines that are written; none of them has a token in it.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto",
        description="How lines look; auto is console on a terminal and json elsewhere, for Cloud Logging and the like.",
    )
    access_log: bool = Field(
        default=False,
        description="Write a line for every exchange. Off, because the metrics tell most of it at less cost.",
    )
    deployments: DeploymentSettings = Field(
        default=DeploymentSettings(),
        description=(
            "What deployments may choose themselves (open routes): a deployment names its host in its URL, and its "
            "authentication in headers."
        ),
    )
    routes: Mapping[Annotated[str, AfterValidator(check_name)], RouteSettings] = Field(
        default={},
        description=(
            "The upstreams by name. A name is a path prefix: /greeter/discover goes to the route `greeter`; "
            'the longest one wins, and a route named `""` takes what is left.'
        ),
    )

    @field_validator("admin")
    @classmethod
    def _admin(cls, admin: str, info: ValidationInfo) -> str:
        address = parse_address_or_off(admin)
        if (
            address is not None
            and (address.path or address.port)
            and address in map(parse_address, (*info.data.get("listen", ()), *info.data.get("tls_listen", ())))
        ):
            raise ValueError(f"{admin} is taken by `listen` or `tls_listen`; use another port, or off")
        return admin

    @field_validator("queued_octets")
    @classmethod
    def _cap(cls, queued_octets: int, info: ValidationInfo) -> int:
        window = info.data.get("stream_window", 0)
        if queued_octets < window:
            raise ValueError(f"must be at least stream_window ({window}), or one stream could use it up")
        return queued_octets

    @field_validator("routes")
    @classmethod
    def _some_route(cls, routes: Mapping[str, RouteSettings], info: ValidationInfo) -> Mapping[str, RouteSettings]:
        deployments = info.data.get("deployments")  # missing if it is wrong itself, and so was given
        if not routes and deployments is not None and not deployments.hosts:
            raise ValueError(
                "there is no route; give --upstream URL for one service, --route NAME=URL for each of several, "
                "or [routes.NAME] tables with a url in a settings file (--config); or let deployments name their host "
                "(hosts in [deployments])"
            )
        return routes

    def route_table(self) -> RouteTable:
        """Return the routes for lookup, named and open."""
        named = (settings.route(name) for name, settings in self.routes.items())
        return RouteTable(named, self.deployments.allow_lists())

    def plain(self, *, config: Path | None = None, config_state: tuple[int, ...] = ()) -> PlainSettings:
        """Return the same settings without pydantic, each route with its URL parsed and its audience filled in.

        `config` and `config_state` say which file they were read from.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values |= {"deployments": self.deployments.allow_lists(), "routes": self.route_table().routes}
        return PlainSettings(**values, config=config, config_state=config_state)

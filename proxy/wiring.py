"""Makes parts of a worker from its settings."""

from __future__ import annotations

import asyncio

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.connection.protocol import MakeEngine, RequestAcceptor
from proxy.downstream.ages import ConnectionAges
from proxy.downstream.binding import UnixAccess
from proxy.downstream.deadlines import Deadlines
from proxy.downstream.listener import Listener
from proxy.downstream.tls import Handshakes, TlsContext, TlsFiles
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.network.http_proxy import HttpProxy, parse_http_proxy
from proxy.observe.observer import DownstreamObserver, UpstreamObserver
from proxy.relay.signing import WATCHED_IN_REQUESTS, WATCHED_IN_RESPONSES
from proxy.request_identity import Verifier
from proxy.settings.plain import PlainSettings
from proxy.upstream.connection import Timing
from proxy.upstream.connector import Connector
from proxy.upstream.pool import Pool

__all__ = [
    "change_listener",
    "connector",
    "engines",
    "handshakes",
    "listener",
    "pool",
    "timing",
    "tls_context",
    "tls_files",
    "unix_access",
    "upstream_proxy",
    "verifier",
]


def engines(settings: PlainSettings, make: EngineFactory, *, client: bool) -> MakeEngine:
    """Return what makes the engines of clients, towards upstreams, or of servers."""
    limits = Limits(
        max_concurrent_streams=settings.max_concurrent_streams,
        stream_window_octets=settings.stream_window,
        max_field_section_octets=settings.max_field_section,
        max_interim_heads=settings.max_interim_heads,
    )
    watched_names = WATCHED_IN_RESPONSES if client else WATCHED_IN_REQUESTS
    return lambda handler: make(client=client, limits=limits, handler=handler, watched_names=watched_names)


def listener(
    settings: PlainSettings,
    make: EngineFactory,
    acceptor: RequestAcceptor,
    budget: Budget,
    flusher: Flusher,
    observer: DownstreamObserver,
) -> Listener:
    """Return what serves the connections of clients, and passes their requests to `acceptor`."""
    return Listener(
        acceptor,
        engines(settings, make, client=False),
        budget,
        flusher,
        observer,
        allowed_hosts=settings.allowed_hosts,
        most_connections=_most_connections(settings),
        cancels_per_minute=settings.cancels_per_minute,
        deadlines=_deadlines(settings),
        ages=ConnectionAges(settings.max_connection_age),
    )


def connector(
    settings: PlainSettings, make_engine: MakeEngine, budget: Budget, flusher: Flusher, observer: UpstreamObserver
) -> Connector:
    """Return what opens upstream connections."""
    return Connector(
        make_engine,
        budget,
        flusher,
        timing=timing(settings),
        upstream_ca=settings.upstream_ca,
        upstream_proxy=upstream_proxy(settings),
        connect_timeout_seconds=settings.connect_timeout,
        observer=observer,
    )


def upstream_proxy(settings: PlainSettings) -> HttpProxy | None:
    """Return the proxy through which services are reached; None if there is none."""
    return parse_http_proxy(settings.upstream_proxy) if settings.upstream_proxy is not None else None


def pool(settings: PlainSettings, connecting: Connector, observer: UpstreamObserver) -> Pool:
    """Return what keeps upstream connections, which `connecting` opens."""
    return Pool(
        connecting.connect,
        observer,
        max_connections=settings.max_upstream_connections,
        wait_timeout_seconds=settings.stream_wait_timeout,
        max_age_seconds=settings.max_upstream_connection_age,
        delay=connecting.delay,
    )


def timing(settings: PlainSettings) -> Timing:
    """Return the intervals and timeouts of upstream connections."""
    return Timing(
        ping_interval_seconds=settings.ping_interval,
        ping_timeout_seconds=settings.ping_timeout,
        idle_timeout_seconds=settings.upstream_idle_timeout,
        cancels_per_minute=settings.upstream_cancels_per_minute,
    )


def change_listener(listener: Listener, settings: PlainSettings) -> None:
    """Put those settings in force that a listener can take while it runs."""
    listener.allowed_hosts = frozenset(settings.allowed_hosts)
    listener.admission.most_connections = _most_connections(settings)
    listener.cancels.per_minute = settings.cancels_per_minute
    listener.deadlines = _deadlines(settings)
    listener.ages.most_seconds = settings.max_connection_age


def _deadlines(settings: PlainSettings) -> Deadlines:
    return Deadlines(
        first_request_seconds=settings.first_request_timeout,
        head_seconds=settings.head_timeout,
        content_octets_per_second=settings.http1_octets_per_second,
    )


def verifier(settings: PlainSettings) -> Verifier | None:
    """Return what refuses requests that no known Restate has signed; None if all are taken."""
    return Verifier(settings.restate_identity_keys) if settings.restate_identity_keys else None


def unix_access(settings: PlainSettings) -> UnixAccess:
    """Return which local users can connect to Unix sockets."""
    return UnixAccess.parse(settings.socket_mode, settings.socket_user, settings.socket_group)


def _most_connections(settings: PlainSettings) -> int:
    """Return how many connections of clients one worker may have open."""
    return -(-settings.max_connections // settings.workers)


def tls_files(settings: PlainSettings) -> TlsFiles | None:
    """Return the files of the certificate for clients; None if there is no listener with TLS."""
    if not settings.tls_listen:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise RuntimeError("tls_listen has no certificate")
    return TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def tls_context(settings: PlainSettings) -> TlsContext | None:
    """Return the certificate for clients; None if there is no listener with TLS. Raises TlsUnusable."""
    files = tls_files(settings)
    return None if files is None else TlsContext(files)


def handshakes(loop: asyncio.AbstractEventLoop, tls: TlsContext | None, listener: Listener) -> Handshakes | None:
    """Return what makes TLS connections for this listener; None without a certificate."""
    if tls is None:
        return None
    return Handshakes(loop, tls, admits=listener.admission.admits_handshake, on_failed=listener.handshake_failed)

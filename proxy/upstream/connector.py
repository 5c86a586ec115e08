"""From an origin to a usable connection: resolution, TCP, TLS with verification, ALPN h2, SETTINGS; one deadline.

If there is a proxy, its name is resolved instead of the origin's, and a tunnel through it (CONNECT) comes before TLS.

The peer's SETTINGS are waited for because they say how many streams may be opened, and because only they prove that an
`http://` upstream speaks HTTP/2 at all. A server sends them at once (RFC 9113, 3.4). If a host has several addresses,
one that fails in any of these steps, or does not answer, gives way to another (`addresses`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Final

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.connection.protocol import MakeEngine
from proxy.errors import (
    Failure,
    UpstreamConnectFailed,
    UpstreamConnectTimeout,
    UpstreamNotHttp2,
    UpstreamTlsFailed,
)
from proxy.network.authorities import NONE, NONE_REMEDY, REMEDY, named_file_problem, state_of_authorities, trusts_none
from proxy.network.descriptors import is_reserved
from proxy.network.http_proxy import HttpProxy
from proxy.network.resolver import CHECK_NAME_SERVERS, AddressInfo, Resolver
from proxy.observe.observer import UpstreamObserver
from proxy.routes import Origin
from proxy.upstream.addresses import Addresses, Attempts
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.tls import open_tls
from proxy.upstream.tunnel import open_tunnel, tunnels_to

__all__ = ["Connector", "tls_context"]

# No issuer, no issuer here, a self-signed certificate, one in the chain, no chain.
_UNTRUSTED: Final = frozenset((2, 20, 18, 19, 21))

_WRONG_NAME: Final = "the url of the route must have a name that the certificate is made out to"

_REMEDIES: Final = {
    9: "see that this machine's clock is right, or have it reissued",  # not yet valid
    10: "renew it, and see that this machine's clock is right",  # expired
    62: _WRONG_NAME,
    64: _WRONG_NAME,  # an address
}


def tls_context(upstream_ca: Path | None) -> ssl.SSLContext:
    """Return a verifying client context, TLS 1.2 or newer (RFC 9113, 9.2), that offers h2 alone.

    `upstream_ca` adds to the system's authorities; OSError (ssl.SSLError is one) where it cannot be used.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # RFC 9113, 9.2.1
    if upstream_ca is not None:
        context.load_verify_locations(cafile=upstream_ca)
    context.set_alpn_protocols(["h2"])
    return context


class Connector:
    """Opens connections.

    The TLS context is made at the first need: it reads the system's authorities. It is made again if the files of
    authorities have changed, and a certificate did not verify since, or the settings were read again.
    """

    def __init__(
        self,
        make_engine: MakeEngine,
        budget: Budget,
        flusher: Flusher,
        *,
        timing: Timing,
        upstream_ca: Path | None = None,
        upstream_proxy: HttpProxy | None = None,
        connect_timeout_seconds: float = 5.0,
        resolver: Resolver | None = None,
        observer: UpstreamObserver | None = None,
    ) -> None:
        self._make_engine = make_engine
        self._budget = budget
        self._flusher = flusher
        self._timing = timing
        self._upstream_ca = upstream_ca
        self._upstream_proxy = upstream_proxy
        self._timeout_seconds = connect_timeout_seconds
        self._resolver = resolver or Resolver()
        self._observer = observer or UpstreamObserver()
        self._tls: ssl.SSLContext | None = None
        self._authorities: tuple[tuple[int, ...], ...] = ()
        """The state of the files of authorities before that context was made."""
        self._doubted = False
        """Whether a certificate did not verify since, or the settings were read again."""
        self._addresses = Addresses(flusher.loop.time)

    def change(
        self,
        *,
        timing: Timing,
        upstream_ca: Path | None,
        upstream_proxy: HttpProxy | None,
        connect_timeout_seconds: float,
    ) -> None:
        """Open connections in another way from now on. The files of authorities are read again if they have changed."""
        if upstream_ca != self._upstream_ca:
            self._tls = None
        self._doubted = True
        self._timing = timing
        self._upstream_ca = upstream_ca
        self._upstream_proxy = upstream_proxy
        self._timeout_seconds = connect_timeout_seconds

    def proxy_to(self, origin: Origin) -> HttpProxy | None:
        """Return the proxy through which an origin is reached; None if it is reached directly."""
        return self._upstream_proxy if self._upstream_proxy is not None and tunnels_to(origin) else None

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """Return a connection that is ready. Raises a leaf of UpstreamFailure that says what failed and what to do."""
        tls = self._context() if origin.scheme == "https" else None
        proxy = self.proxy_to(origin)
        addresses: list[AddressInfo] = []
        attempts = Attempts(self._addresses, partial(self._handshake, origin, tls, proxy), UpstreamConnection.abort)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                addresses = await self._resolver.resolve(*_first_hop(origin, proxy))
                return await attempts.first_ready(addresses)
        except (OSError, Failure) as exc:  # TimeoutError and ssl.SSLError are OSErrors
            attempts.none_served(addresses)
            # Of two addresses, one may have failed and the other have been silent until the deadline.
            cause = attempts.failure if isinstance(attempts.failure, OSError | Failure) else exc
            if isinstance(cause, Failure):
                raise cause from (None if cause is exc else exc)
            if isinstance(cause, ssl.SSLCertVerificationError):
                self._doubted = True
            raise self._explained(origin, cause, proxy, resolved=bool(addresses)) from exc

    def delay(self, origin: Origin) -> str:
        """Return what a running attempt to connect to `origin` waits for, and what to do about it."""
        proxy = self.proxy_to(origin)
        hop, check = _hop(origin, proxy)
        if self._resolver.is_unanswered(_first_hop(origin, proxy)[0]):
            return f"the host name of {hop} is not answered; {CHECK_NAME_SERVERS}"
        return f"check {check}{'' if proxy is None else f' ({proxy})'}, and the network in between"

    async def _handshake(
        self, origin: Origin, tls: ssl.SSLContext | None, proxy: HttpProxy | None, connected: socket.socket
    ) -> UpstreamConnection:
        if is_reserved(connected.fileno(), to_service=True):
            connected.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if proxy is not None:
            try:
                await open_tunnel(connected, proxy, origin)
            except BaseException:
                connected.close()
                raise
        connection = UpstreamConnection(
            self._make_engine, self._budget, self._flusher, origin=origin, timing=self._timing, observer=self._observer
        )
        try:
            if tls is not None:
                # The context checks the host, and sends it as SNI unless it is an address.
                await open_tls(connection, connected, tls, origin.host)
            else:
                await asyncio.get_running_loop().create_connection(connection.as_protocol, sock=connected)
            await connection.ready
        except BaseException:
            if connection.transport is None:
                connection.connection_lost(None)  # otherwise its account would keep it for ever
            connection.abort()
            # The failure is being raised, so the future may not report its own as never retrieved.
            if not connection.ready.cancel() and not connection.ready.cancelled():
                connection.ready.exception()
            raise
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is not None and not self._doubted:
            return self._tls
        state = state_of_authorities(*([] if self._upstream_ca is None else [self._upstream_ca]))
        if self._tls is not None and state == self._authorities:
            self._doubted = False
            return self._tls
        try:
            self._tls = self._new_context()
        except UpstreamTlsFailed:
            if self._tls is None:
                raise
            return self._tls  # What was read before is better than nothing.
        self._authorities = state
        self._doubted = False
        return self._tls

    def _new_context(self) -> ssl.SSLContext:
        problem = named_file_problem() if self._upstream_ca is None else ""
        if problem:
            raise UpstreamTlsFailed(problem, remedy=REMEDY)
        try:
            return tls_context(self._upstream_ca)
        except OSError as exc:
            what = "TLS cannot be set up"
            if self._upstream_ca is not None:
                what = f"{self._upstream_ca} (upstream_ca) cannot be used as a certificate authority"
            raise UpstreamTlsFailed(f"{what}: {_reason(exc)}") from exc

    def _explained(self, origin: Origin, exc: OSError, proxy: HttpProxy | None, *, resolved: bool) -> Failure:
        """Return what a person needs to know about this error; `resolved` tells that the addresses were known."""
        hop, check = _hop(origin, proxy)
        match exc:
            case ssl.SSLCertVerificationError():
                what = f"the certificate of {origin} does not verify"
                if exc.verify_code in _UNTRUSTED and self._tls is not None and trusts_none(self._tls):
                    return UpstreamTlsFailed(f"{what}: {NONE}", remedy=NONE_REMEDY)
                return UpstreamTlsFailed(f"{what}: {exc.verify_message.rstrip('.')}; {self._remedy(exc.verify_code)}")
            case ssl.SSLError() if "no application protocol" in _alert(exc):
                return UpstreamNotHttp2(
                    f"{origin} does not offer HTTP/2 (ALPN h2); deploy the service with `gcloud run deploy --use-http2`"
                )
            case ssl.SSLError() if "certificate required" in _alert(exc):
                return UpstreamTlsFailed(
                    f"{origin} requires a certificate of its clients (mTLS), and the sidecar has none",
                    remedy="set the url of the route to one that does not, such as the service's own (run.app)",
                )
            case ssl.SSLError():
                return UpstreamTlsFailed(
                    f"TLS with {origin} failed: {_reason(exc)}; check that it is an https:// service, and its port"
                )
            case socket.gaierror():
                # EAI_AGAIN: the name servers have failed, which says nothing about the name.
                check = CHECK_NAME_SERVERS if exc.errno == socket.EAI_AGAIN else f"check {check}"
                return UpstreamConnectFailed(f"the host name of {hop} does not resolve ({_reason(exc)}); {check}")
            case TimeoutError() if exc.errno is None and not resolved:
                return UpstreamConnectTimeout(
                    f"the host name of {hop} was not answered within {self._timeout_seconds:g} s; {CHECK_NAME_SERVERS}"
                )
            case TimeoutError() if exc.errno is None:
                return UpstreamConnectTimeout(
                    f"{origin} was not connected within {self._timeout_seconds:g} s "
                    f"(name, TCP, TLS and SETTINGS together){'' if proxy is None else f', through {hop} ({check})'}"
                )
            case OSError(errno=errno.EMFILE | errno.ENFILE):
                return UpstreamConnectFailed(
                    f"{origin} cannot be connected to: the limit of open files is nearly reached; raise it (ulimit -n, "
                    "LimitNOFILE), or set a lower max_upstream_connections"
                )
        return UpstreamConnectFailed(
            f"{origin} cannot be connected to{'' if proxy is None else f' through {hop}'} ({_reason(exc)}); "
            f"check {check}, and the network in between"
        )

    def _remedy(self, verify_code: int) -> str:
        """Return what mends a certificate that does not verify (X509_V_ERR_…, x509_vfy.h)."""
        if verify_code not in _UNTRUSTED:
            return _REMEDIES.get(verify_code, "it, or the certificate of its authority, has to be reissued")
        if self._upstream_ca is None:
            return "if a private authority signed it, name its certificate with --upstream-ca"
        return f"neither the system nor {self._upstream_ca} (upstream_ca) has the authority that signed it"


def _first_hop(origin: Origin, proxy: HttpProxy | None) -> tuple[str, int]:
    """Return host and port of what a TCP connection is opened to."""
    return (origin.host, origin.port) if proxy is None else (proxy.host, proxy.port)


def _hop(origin: Origin, proxy: HttpProxy | None) -> tuple[str, str]:
    """Return what a TCP connection is opened to, and the setting that says so."""
    return (f"{origin}", "the url of the route") if proxy is None else (f"the proxy {proxy}", "upstream_proxy")


def _alert(exc: ssl.SSLError) -> str:
    """Return what OpenSSL says, in one spelling: older Pythons have no name for some alerts, only words."""
    return f"{exc.reason} {exc.strerror}".lower().replace("_", " ")


def _reason(exc: OSError) -> str:
    """Return the cause in a few words."""
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason
    if exc.errno is not None and exc.errno > 0 and not isinstance(exc, ssl.SSLError):
        return os.strerror(exc.errno)
    return exc.strerror or str(exc) or "the connection ended"

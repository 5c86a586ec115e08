"""The steps `dns`, `tcp`, `tls` and `http2`. The sidecar's own connector does the last two.

The first two have deadlines of their own, so that a timeout is reported for the right step.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohappyeyeballs

from proxy.doctor.claims import format_time
from proxy.doctor.report import Outcome, Step, StepName, as_problem, as_remedy, as_sentence, failed, skipped
from proxy.errors import Failure, UpstreamConnectionLost, UpstreamNotHttp2
from proxy.network.address import Address
from proxy.network.authorities import REMEDY, VALIDITY_PERIOD_ERRORS, named_file_problem
from proxy.network.http_proxy import HttpProxy
from proxy.network.resolver import AddressInfo, Resolver
from proxy.quoting import one_line
from proxy.routes import Origin
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.connector import Connector, tls_context
from proxy.upstream.tunnel import open_tunnel

__all__ = ["ConnectionCheck", "ConnectionResult", "certificate_details"]

_HAPPY_EYEBALLS_DELAY_SECONDS: Final = 0.25  # RFC 8305, section 8
_DAY_SECONDS: Final = 86_400
_EXPIRY_WARNING_DAYS: Final = 7
_ADDRESSES_SHOWN: Final = 4

_UNTRUSTED: Final = frozenset((2, 18, 19, 20, 21, 27))
"""X509_V_ERR_… of a certificate whose authority is not known or not trusted (x509_vfy.h)."""


class ConnectionResult(NamedTuple):
    """The result of connecting to an origin."""

    steps: tuple[Step, ...]
    """`dns`, `tcp`, `tls` and `http2`."""
    connection: UpstreamConnection | None
    """The connection; None if a step failed."""


class ConnectionCheck:
    """Connects to origins, step by step. `timeout_seconds` is the deadline of each step."""

    def __init__(
        self, connector: Connector, resolver: Resolver, upstream_ca: Path | None, timeout_seconds: float
    ) -> None:
        self._connector = connector
        self._resolver = resolver
        self._upstream_ca = upstream_ca
        self._timeout_seconds = timeout_seconds

    async def connect(self, origin: Origin, now: float) -> ConnectionResult:
        """Return the steps, and the connection if all succeed; `now` in seconds since the epoch, for certificates."""
        proxy = self._connector.proxy_to(origin)
        dns, addresses = await self._resolve(origin, proxy)
        if not addresses:
            return _stopped("DNS", dns)
        tcp, connected = await self._connect(origin, addresses, proxy)
        if connected is None:
            return _stopped("TCP", dns, tcp)
        with connected:
            try:
                connection = await self._connector.connect(origin)
            except Failure as failure:
                # Before the socket is closed: the handshake for the certificate uses it.
                tls, http2 = await self._explain_failure(origin, failure, connected, now)
                return ConnectionResult((dns, tcp, tls, http2), None)
        tls = _tls_step(origin, _tls_of(connection), now)
        return ConnectionResult((dns, tcp, tls, _http2_step(origin, connection)), connection)

    async def _resolve(self, origin: Origin, proxy: HttpProxy | None) -> tuple[Step, list[AddressInfo]]:
        host, port, setting = origin.host, origin.port, "the url of the route"
        if proxy is not None:
            host, port, setting = proxy.host, proxy.port, "upstream_proxy"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found = await self._resolver.resolve(host, port)
        except TimeoutError:
            text = f"no DNS answer for {host} within {self._timeout_seconds:g} s"
            return failed("dns", "dns-timeout", text, "Check the resolver of this machine (/etc/resolv.conf)."), []
        except OSError as exc:
            text = f"the name {host} does not resolve ({exc.strerror or exc})"
            remedy = f"Check {setting} for a typo, then the resolver of this machine."
            return failed("dns", "dns-failed", text, remedy), []
        addresses = list(dict.fromkeys(str(entry.sockaddr[0]) for entry in found))
        shown = ", ".join(addresses[:_ADDRESSES_SHOWN]) + (", …" if len(addresses) > _ADDRESSES_SHOWN else "")
        shown = shown if proxy is None else f"{shown}, of the proxy {proxy}"
        step = Step(name="dns", outcome=Outcome.OK, text=shown, details={"addresses": addresses})
        return step, found

    async def _connect(
        self, origin: Origin, addresses: list[AddressInfo], proxy: HttpProxy | None
    ) -> tuple[Step, socket.socket | None]:
        """Return the step and a socket; through a proxy, that of a tunnel."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        connected = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                connected = await aiohappyeyeballs.start_connection(
                    addresses,
                    happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_SECONDS,
                    loop=loop,
                )
                if proxy is not None:
                    await open_tunnel(connected, proxy, origin)
            where = str(Address.of_socket(connected.getpeername()))  # OSError if it was reset meanwhile
        except Failure as failure:
            assert connected is not None  # noqa: S101 - only the proxy's answer is one
            connected.close()
            return failed("tcp", "proxy-refused", as_problem(failure), as_remedy(failure)), None
        except OSError as exc:  # TimeoutError is one
            if connected is not None:
                connected.close()
            if connected is None or proxy is None:
                return self._connect_failure(origin, proxy, exc), None
            return self._tunnel_failure(proxy, exc), None
        milliseconds = round((loop.time() - started) * 1000, 1)
        text = f"{where}, {milliseconds:g} ms"
        details: dict[str, Any] = {"address": where, "milliseconds": milliseconds}
        if proxy is not None:
            text, details["proxy"] = f"through the proxy {proxy} ({text})", proxy.url()
        return Step(name="tcp", outcome=Outcome.OK, text=text, details=details), connected

    def _connect_failure(self, origin: Origin, proxy: HttpProxy | None, exc: OSError) -> Step:
        host, port, setting = origin.host, origin.port, "the url of the route, and whether the service is running"
        if proxy is not None:
            host, port, setting = proxy.host, proxy.port, "upstream_proxy, and whether the proxy is running"
        if isinstance(exc, TimeoutError) and exc.errno is None:
            return failed(
                "tcp",
                "tcp-timeout",
                f"{host} port {port} did not answer within {self._timeout_seconds:g} s",
                "Packets are dropped: check firewalls and, in a VPC, routes to Google (Cloud NAT, Private Google "
                "Access).",
            )
        why = os.strerror(exc.errno) if exc.errno is not None and exc.errno > 0 else exc.strerror or type(exc).__name__
        return failed(
            "tcp",
            "tcp-failed",
            f"{host} port {port}: the connection failed ({why})",
            f"Check host and port in {setting}.",
        )

    def _tunnel_failure(self, proxy: HttpProxy, exc: OSError) -> Step:
        """Return the step after the connection to the proxy failed before its answer."""
        if isinstance(exc, TimeoutError) and exc.errno is None:
            text = f"the proxy {proxy} did not open a tunnel within {self._timeout_seconds:g} s"
            return failed("tcp", "proxy-timeout", text, "Check whether the proxy reaches Google, and upstream_proxy.")
        text = f"the proxy {proxy} ended the connection before it opened a tunnel"
        return failed("tcp", "proxy-failed", text, "Check upstream_proxy, and the log of the proxy.")

    async def _explain_failure(
        self, origin: Origin, failure: Failure, connected: socket.socket, now: float
    ) -> tuple[Step, Step]:
        """Return the steps `tls` and `http2` after the connector failed."""
        if origin.scheme == "http":
            return _no_tls(), _failure_step("http2", failure)
        if not isinstance(failure, UpstreamNotHttp2 | UpstreamConnectionLost):
            return _failure_step("tls", failure), skipped("http2", "not reached: TLS failed")
        tls = await self._handshake(origin, connected)
        if tls is None:
            return skipped("tls", "the handshake did not finish: see the next step"), _failure_step("http2", failure)
        details = {"alpn": tls.selected_alpn_protocol()}
        return _tls_step(origin, tls, now), _failure_step("http2", failure, details)

    async def _handshake(self, origin: Origin, connected: socket.socket) -> ssl.SSLObject | None:
        """Return the TLS session of a handshake that offers HTTP/1.1, too; None if that fails as well."""
        context = tls_context(self._upstream_ca)
        context.set_alpn_protocols(["h2", "http/1.1"])
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                transport, _ = await loop.create_connection(
                    asyncio.Protocol, sock=connected.dup(), ssl=context, server_hostname=origin.host
                )
        except OSError:  # ssl.SSLError and TimeoutError are among them
            return None
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        transport.abort()
        return tls


def certificate_details(certificate: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return `issuer`, `expires_at` and `remaining_days` of a certificate from `SSLSocket.getpeercert`."""
    issuer = {key: value for pairs in certificate.get("issuer", ()) for key, value in pairs}
    names = [issuer.get("organizationName"), issuer.get("commonName")]
    expires_at = ssl.cert_time_to_seconds(certificate["notAfter"])
    return {
        "issuer": one_line(", ".join(name for name in names if name) or "an issuer without a name"),
        "expires_at": format_time(expires_at),
        "remaining_days": int((expires_at - now) // _DAY_SECONDS),
    }


def _tls_of(connection: UpstreamConnection) -> ssl.SSLObject | None:
    transport = connection.transport
    return transport.get_extra_info("ssl_object") if transport is not None else None


def _tls_step(origin: Origin, tls: ssl.SSLObject | None, now: float) -> Step:
    if tls is None:
        return _no_tls()
    certificate = tls.getpeercert()
    version = tls.version() or "TLS"
    if not certificate:
        return Step(name="tls", outcome=Outcome.OK, text=version, details={"version": version})
    details = {"version": version, **certificate_details(certificate, now)}
    days = details["remaining_days"]
    text = f"{version}, certificate of {details['issuer']}, valid until {details['expires_at']}"
    if days < _EXPIRY_WARNING_DAYS:
        return Step(
            name="tls",
            outcome=Outcome.WARNING,
            code="certificate-expires-soon",
            text=text,
            remedy=f"The certificate of {origin.host} expires in {days} days: renew it.",
            details=details,
        )
    return Step(name="tls", outcome=Outcome.OK, text=text, details=details)


def _no_tls() -> Step:
    return skipped("tls", "not used: the url is http:// (allow_http)")


def _http2_step(origin: Origin, connection: UpstreamConnection) -> Step:
    streams = connection.engine.peer_max_concurrent_streams
    negotiated = "ALPN h2" if origin.scheme == "https" else "prior knowledge"
    return Step(
        name="http2",
        outcome=Outcome.OK,
        text=f"{negotiated}, {streams} streams a connection",
        details={"streams": streams},
    )


def _failure_step(name: StepName, failure: Failure, details: Mapping[str, Any] | None = None) -> Step:
    text, remedy = as_problem(failure), as_remedy(failure)
    cause = failure.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _UNTRUSTED:
        # Beside upstream_ca, OpenSSL takes it for an empty one.
        unreadable = named_file_problem()
        remedy = as_sentence(f"{unreadable}; {REMEDY}") if unreadable else remedy
    elif isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in VALIDITY_PERIOD_ERRORS:
        remedy = "Set the clock of this machine (NTP) if it is wrong; otherwise the certificate has to be renewed."
    return failed(name, failure.code, text, remedy, details=details)


def _stopped(what: str, *steps: Step) -> ConnectionResult:
    names: tuple[StepName, ...] = ("dns", "tcp", "tls", "http2")
    rest = [skipped(name, f"not reached: {what} failed") for name in names[len(steps) :]]
    return ConnectionResult((*steps, *rest), None)

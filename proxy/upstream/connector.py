"""From an origin to a usable connection: resolution, TCP, TLS with verification, ALPN h2, SETTINGS; one deadline.

The peer's SETTINGS are waited for because they say how many streams may be opened, and because only they prove that an
`http://` upstream speaks HTTP/2 at all. A server sends them at once (RFC 9113, 3.4).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohappyeyeballs

from proxy.errors import (
    Failure,
    UpstreamConnectFailed,
    UpstreamConnectTimeout,
    UpstreamNotHttp2,
    UpstreamTlsFailed,
)
from proxy.http2.engine import Engine
from proxy.routing import Origin
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.wire import Budget

__all__ = ["Connector", "tls_context"]

_HAPPY_EYEBALLS_DELAY_SECONDS = 0.25  # RFC 8305, section 8


def tls_context(upstream_ca: Path | None) -> ssl.SSLContext:
    """Return a verifying client context with ALPN h2 alone; `upstream_ca` adds to the system's authorities."""
    context = ssl.create_default_context()
    if upstream_ca is not None:
        context.load_verify_locations(cafile=upstream_ca)
    context.set_alpn_protocols(["h2"])
    return context


class Connector:
    """Opens connections. The TLS context is made at the first need: it reads the system's authorities."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        budget: Budget,
        *,
        timing: Timing,
        upstream_ca: Path | None = None,
        connect_timeout_seconds: float = 5.0,
    ) -> None:
        self._engine = engine
        self._budget = budget
        self._timing = timing
        self._upstream_ca = upstream_ca
        self._timeout_seconds = connect_timeout_seconds
        self._tls: ssl.SSLContext | None = None

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """Return a settled connection. Raises a leaf of UpstreamFailure that says what failed and what to do."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._connect(origin)
        except Failure:
            raise
        except TimeoutError:
            raise UpstreamConnectTimeout(
                f"{origin} was not connected within {self._timeout_seconds:g} s (name, TCP, TLS and SETTINGS together)"
            ) from None
        except ssl.SSLCertVerificationError as exc:
            raise UpstreamTlsFailed(
                f"the certificate of {origin} does not verify: {exc.verify_message}; if a private authority signed it, "
                "name its certificate with --upstream-ca"
            ) from exc
        except ssl.SSLError as exc:
            if "NO_APPLICATION_PROTOCOL" in (exc.reason or ""):
                raise UpstreamNotHttp2(
                    f"{origin} does not offer HTTP/2 (ALPN h2); deploy the service with `gcloud run deploy --use-http2`"
                ) from exc
            raise UpstreamTlsFailed(f"TLS with {origin} failed: {exc.reason or exc}") from exc
        except socket.gaierror as exc:
            raise UpstreamConnectFailed(f"the host name of {origin} does not resolve: {exc.strerror}") from exc
        except OSError as exc:
            raise UpstreamConnectFailed(f"{origin} cannot be connected to: {exc.strerror or exc}") from exc

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        connected = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_SECONDS, loop=loop
        )
        connection = UpstreamConnection(self._engine(), self._budget, loop, origin=origin, timing=self._timing)
        secure = origin.scheme == "https"
        try:
            await loop.create_connection(
                lambda: connection,
                sock=connected,
                ssl=self._context() if secure else None,
                server_hostname=origin.host if secure else None,
            )
            await connection.settled
        except BaseException:
            connection.abort()
            if connection.settled.done() and not connection.settled.cancelled():
                connection.settled.exception()  # seen: whoever raised has said more
            raise
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls_context(self._upstream_ca)
        return self._tls

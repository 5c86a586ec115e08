"""The HTTP client for calls to Google and to metadata servers: the only use of aiohttp in this room."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

import aiohttp
from yarl import URL

from proxy import __version__
from proxy.errors import Failure, TokenTimeout, TokenUnavailable
from proxy.network.authorities import (
    NONE,
    NONE_REMEDY,
    REMEDY,
    VALIDITY_PERIOD_ERRORS,
    named_file_problem,
    state_of_authorities,
    trusts_none,
)
from proxy.network.http_proxy import login_refusal
from proxy.network.resolver import CHECK_NAME_SERVERS
from proxy.quoting import one_line, secrets_of_request
from proxy.tokens.aiohttp_resolver import AiohttpResolver
from proxy.tokens.blocking import FILE_SECONDS, BlockingCalls
from proxy.tokens.calls import NoDescriptor, NotConnected, Reply, host_of
from proxy.tokens.gate import Gate
from proxy.tokens.http_proxies import Proxy, proxy_for

__all__ = ["HttpClient"]

_TOTAL_SECONDS: Final = 10.0
_CALLS_AT_ONCE: Final = 16
_MOST_OCTETS: Final = 256 * 1024
_DESCRIPTORS_REMEDY: Final = "raise the limit of open files (ulimit -n, LimitNOFILE)"


class _Trust(NamedTuple):
    """A context, and the state of the file of its authorities before it was read."""

    context: ssl.SSLContext
    state: tuple[tuple[int, ...], ...]


class HttpClient:
    """An HTTP client whose session is opened by the first call. `direct` means without a proxy and without TLS.

    The trusted authorities are read by the first call, and again where a certificate did not verify since and their
    file has changed.
    """

    def __init__(
        self,
        resolver: aiohttp.abc.AbstractResolver,
        blocking: BlockingCalls,
        *,
        direct: bool,
        connect_seconds: float,
    ) -> None:
        self._resolver = resolver
        self._blocking = blocking
        self._direct = direct
        self._connect_seconds = connect_seconds
        self._gate = Gate(_CALLS_AT_ONCE)
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._trust: _Trust | None = None
        self._doubted = False
        """Whether a certificate did not verify since the authorities were read."""
        self._closed = False

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        """Make one call (`calls.Send`). Without a connection, another address of the host is tried once."""
        async with self._gate.place():
            return await self._send(method, url, headers, body, may_repeat=True)

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, *, may_repeat: bool
    ) -> Reply:
        began = asyncio.get_running_loop().time()
        host = host_of(url)
        proxy: Proxy | None = None
        try:
            session = await self._open()
            # The URL is complete and quoted. A redirect would send an assertion, or a token, to another host.
            if not self._direct:
                proxy = proxy_for(url)
            if proxy is not None and url.startswith("http:"):
                headers = {**headers, **proxy.headers}  # There is no CONNECT that could carry them.
            async with session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
                proxy=proxy.url if proxy is not None else None,
                proxy_headers=proxy.headers if proxy is not None else None,
                ssl=self._trust.context if self._trust is not None else True,
            ) as response:
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) <= _MOST_OCTETS:
                        continue
                    if 200 <= response.status < 300:
                        raise TokenUnavailable(f"{host} answered with more than {_MOST_OCTETS // 1024} KiB")
                    break  # The status and the beginning say what is wrong.
                return Reply(response.status, response.headers, bytes(content), secrets_of_request(headers, body))
        except aiohttp.ConnectionTimeoutError:
            failure: Failure = NotConnected(self._late(host, proxy))
        except TimeoutError:
            failure = TokenTimeout(f"{host} did not answer within {_TOTAL_SECONDS:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            why, (kind, remedy) = _reason(exc, proxy), _kind(exc)
            if isinstance(exc, aiohttp.ClientConnectorCertificateError):
                self._doubted = True
                if self._trust is not None and trusts_none(self._trust.context):
                    why, remedy = f"its certificate does not verify: {NONE}", NONE_REMEDY
            failure = kind(f"{host} could not be asked{_way(proxy)}: {why}", remedy=remedy)
        hop = host if proxy is None else proxy.url.host or ""
        has_others = isinstance(self._resolver, AiohttpResolver) and self._resolver.has_failed(hop.lower(), began)
        if has_others and may_repeat and isinstance(failure, NotConnected):
            return await self._send(method, url, headers, body, may_repeat=False)
        raise failure  # without a chain: some of the errors hold what was received

    def _late(self, host: str, proxy: Proxy | None) -> str:
        """Return why there was no connection in time."""
        name = host if proxy is None else proxy.url.host or ""
        within = f"within {self._connect_seconds:g} s"
        if isinstance(self._resolver, AiohttpResolver) and self._resolver.is_unanswered(name):
            return f"{host}{_way(proxy)}: {_named(proxy)} was not answered {within}; {CHECK_NAME_SERVERS}"
        return f"{host}{_way(proxy)}: no connection {within}"

    async def close(self) -> None:
        """Close all connections; a call after this raises TokenUnavailable."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _open(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._closed:
                raise TokenUnavailable("the sidecar is shutting down and mints no more tokens")
            if not self._direct and (self._trust is None or self._doubted):
                await self._read_authorities()
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    # The resolver decides the order of addresses for each connection, so there is no cache before it.
                    connector=aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, limit=0),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"user-agent": f"cloudrun-sidecar/{__version__}", "accept-encoding": "identity"},
                    timeout=aiohttp.ClientTimeout(total=_TOTAL_SECONDS, connect=self._connect_seconds),
                )
            return self._session

    async def _read_authorities(self) -> None:
        """Read the trusted authorities if their file has changed. If it cannot be read, what was read before stays."""
        try:
            # Milliseconds of disk and CPU at best, so not on the loop.
            self._trust = await self._blocking.run(
                partial(_trusted, self._trust), resource="the file of trusted certificates", seconds=FILE_SECONDS
            )
        except Failure:
            if self._trust is None:
                raise
        else:
            self._doubted = False


def _trusted(known: _Trust | None) -> _Trust:
    """Return a context that trusts the system's authorities, or those in $SSL_CERT_FILE; `known` if it is as good.

    OpenSSL would wait for a writer of a named pipe, and read a device without end. It treats a missing file, and any
    other bad one, as one without authorities.
    """
    state = state_of_authorities()
    if known is not None and known.state == state:
        return known
    problem = named_file_problem()
    if problem:
        raise TokenUnavailable(problem, remedy=REMEDY)
    return _Trust(ssl.create_default_context(), state)


def _kind(exc: Exception) -> tuple[type[TokenUnavailable], str]:
    """Return the failure that an exception means, and its remedy; "" for that of the failure."""
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        return NoDescriptor, _DESCRIPTORS_REMEDY
    return (NotConnected if isinstance(exc, aiohttp.ClientConnectorError) else TokenUnavailable), ""


def _way(proxy: Proxy | None) -> str:
    """Return what is between this machine and the host: with a proxy, a failure may be that of either."""
    return "" if proxy is None else " through the proxy that the environment names"


def _named(proxy: Proxy | None) -> str:
    """Return whose name is looked up."""
    return "its name" if proxy is None else "the name of the proxy"


def _refusal(exc: aiohttp.ClientHttpProxyError, *, has_login: bool) -> str:
    if exc.status == 407:
        challenges = exc.headers.getall("proxy-authenticate", ()) if exc.headers is not None else ()
        refusal = login_refusal(challenges, "http://USER:PASSWORD@HOST:PORT", has_login=has_login)
        return f"the proxy {refusal}"
    return f"the proxy does not let it through ({one_line(f'{exc.status} {exc.message}'.strip())})"


def _reason(exc: Exception, proxy: Proxy | None) -> str:
    match exc:
        case aiohttp.ClientConnectorCertificateError(certificate_error=cause):
            why = getattr(cause, "verify_message", "") or "TLS failed"
            if getattr(cause, "verify_code", None) in VALIDITY_PERIOD_ERRORS:
                return f"its certificate does not verify ({why}); is the clock of this machine right?"
            return f"its certificate does not verify ({why}); $SSL_CERT_FILE names the trusted ones, if set"
        case aiohttp.ClientProxyConnectionError():
            return "the proxy cannot be reached"
        case aiohttp.ClientHttpProxyError():
            return _refusal(exc, has_login=proxy is not None and bool(proxy.headers))
        case aiohttp.ClientConnectorDNSError(os_error=cause):
            failing = (
                f", because the name servers fail; {CHECK_NAME_SERVERS}" if cause.errno == socket.EAI_AGAIN else ""
            )
            return f"{_named(proxy)} does not resolve{failing}"
        case aiohttp.ClientConnectorSSLError(os_error=ssl.SSLError() as cause):
            return f"TLS failed ({cause.reason})"
        case aiohttp.ClientConnectorError(os_error=cause):
            # Of several addresses, `strerror` has all failures in Python's words.
            return os.strerror(cause.errno) if cause.errno else str(cause) or "the connection was closed"
        case aiohttp.ServerDisconnectedError():
            return "the connection was closed without an answer"
        case aiohttp.ClientResponseError():
            return "the answer is not HTTP"
        case aiohttp.ClientPayloadError():
            return "the answer broke off"
        case OSError(strerror=str() as text) if text:
            return text
        case _:
            return type(exc).__name__

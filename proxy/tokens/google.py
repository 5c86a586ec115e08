"""Minting with Google: which credential source there is, and the HTTP to ask it with.

==================================  ==================================  ==========================================
source                              ambient ID token                    impersonation on top (`generateIdToken`)
==================================  ==================================  ==========================================
metadata server                     its `identity`                      its `token`
service-account key file            signed assertion → `token_uri`      signed assertion → `token_uri`
`impersonated_service_account`      `generateIdToken` on its target     `generateAccessToken` on its target
user credentials                    AmbientUnsupported                  refresh grant
workload, workforce federation      AmbientUnsupported                  exchange at the STS
==================================  ==================================  ==========================================

Nothing is read, imported or contacted before the first mint. The lookup is repeated at every mint, and in between by
whoever keeps tokens (`look`), so that a change is taken up in seconds: `current` has what is a change.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import aiohttp
from yarl import URL

from proxy import __version__
from proxy.errors import TokenTimeout, TokenUnavailable
from proxy.network.resolver import CHECK_NAME_SERVERS
from proxy.quoting import quoted, secrets_of_request
from proxy.tokens import adc
from proxy.tokens.aiohttp_resolver import AiohttpResolver
from proxy.tokens.ambient import Ambient
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.calls import NotConnected, Reply, host_of
from proxy.tokens.current import CurrentCredentials
from proxy.tokens.files import source_of
from proxy.tokens.impersonation import IamCredentials
from proxy.tokens.metadata import MetadataServer
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.proxies import Proxy, proxy_for
from proxy.tokens.reading import FileTooLarge, NotRegularFile, read_regular
from proxy.tokens.subject import FILE_SECONDS
from proxy.tokens.worker import Worker

__all__ = ["CredentialInfo", "GoogleMint"]

_TOTAL_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 4.0
_DIRECT_CONNECT_SECONDS: Final = 2.0
_MOST_OCTETS: Final = 256 * 1024
_MOST_TRUST_OCTETS: Final = 16 << 20


class CredentialInfo(NamedTuple):
    """A credential source, to be shown."""

    file: adc.CredentialFile | None
    """None for the metadata server."""
    place: str
    """Path of the file, or where the metadata server is asked."""
    principal: str
    """An e-mail where it is known, else some words."""


class GoogleMint:
    """Mints ID tokens with whatever credentials the environment has (Application Default Credentials).

    `environment` is read at every mint. `resolver`, for tests, says where Google's names lead. Every part of a mint has
    a deadline of its own; a cancelled mint leaves nothing behind.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str] = os.environ,
        resolver: aiohttp.abc.AbstractResolver | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._environment = environment
        self._clock = clock
        self._blocking = BlockingCalls()
        resolver = resolver or AiohttpResolver()
        self._direct = _Http(resolver, self._blocking, direct=True, connect_seconds=_DIRECT_CONNECT_SECONDS)
        self._outside = _Http(resolver, self._blocking, direct=False, connect_seconds=_CONNECT_SECONDS)
        self._worker = Worker(self._send)
        self._iam = IamCredentials(self._outside.send)
        self._current = CurrentCredentials(
            environment,
            self._blocking,
            metadata_server=lambda: MetadataServer(self._direct.send, environment, clock),
            file_source=lambda file: source_of(file, self._worker, self._blocking, self._iam, clock, environment),
        )
        self.on_change: Callable[[int, str], None] | None = None
        """Called when the credentials have changed: the number of the new generation, and the new ones in words."""
        self._minting: set[asyncio.Timeout] = set()
        self._current.on_change = self._changed

    async def __call__(self, key: TokenKey) -> Token:
        """Return a new token for `key` from the credentials that there are when it comes.

        Raises a leaf of `proxy.errors.TokenFailure`. A mint that is under way when they change begins again.
        """
        while True:
            source, generation = await self._current.source()
            until_changed = asyncio.timeout(None)
            try:
                async with until_changed:
                    self._minting.add(until_changed)
                    try:
                        token = await self._mint(source, key)
                    finally:
                        self._minting.discard(until_changed)
            except TimeoutError:
                if not until_changed.expired():
                    raise
                continue
            if key.impersonate is None:
                generation = self._current.minted(source, token, generation)
            return replace(token, generation=generation)

    async def check_for_change(self, *, tokens_kept: bool) -> None:
        """Look whether the credentials are still the same: the file, or the account at the metadata server.

        The latter is asked only if there are tokens to be dropped.
        """
        await self._current.look(ask_account=tokens_kept)

    async def credential_info(self) -> CredentialInfo:
        """Return which credential source there is and who that is. Raises a leaf of `proxy.errors.TokenFailure`.

        The metadata server is asked for it; a credential file is only read.
        """
        source, _ = await self._current.source()
        if isinstance(source, MetadataServer):
            return CredentialInfo(None, source.host, await source.email())
        file = self._current.file
        assert file is not None  # noqa: S101 - a source that is no metadata server was made of a file
        return CredentialInfo(file, file.path, await source.principal())

    async def close(self) -> None:
        """Break off what is under way and close all connections; a mint after this raises TokenUnavailable."""
        await self._worker.close()
        await self._direct.close()
        await self._outside.close()

    async def _mint(self, source: Ambient, key: TokenKey) -> Token:
        if key.impersonate is None:
            return await source.identity(key)
        return await self._iam.identity(source, key, key.impersonate, key.delegates)

    def _changed(self, generation: int, now_in_words: str) -> None:
        now = asyncio.get_running_loop().time()
        for until_changed in self._minting:
            if not until_changed.expired():
                until_changed.reschedule(now)
        if self.on_change is not None:
            self.on_change(generation, now_in_words)

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        """Send for google-auth, which also asks metadata servers (AWS): no proxy for those."""
        http = self._direct if _is_near(url) else self._outside
        return await http.send(method, url, headers, body)


def _is_near(url: str) -> bool:
    return url.startswith("http://") and adc.is_near(url)


class _Http:
    """An HTTP client that opens with its first call. `direct` means without a proxy and without TLS."""

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
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        """Make one call (`calls.Send`)."""
        host = host_of(url)
        proxy: Proxy | None = None
        try:
            session = await self._open()
            # The URL is complete and quoted. A redirect would take an assertion, or a token, somewhere else.
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
            raise NotConnected(self._late(host, proxy)) from None
        except TimeoutError:
            raise TokenTimeout(f"{host} did not answer within {_TOTAL_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            # Without a chain: some of these hold what was received.
            kind = NotConnected if isinstance(exc, aiohttp.ClientConnectorError) else TokenUnavailable
            raise kind(f"{host} could not be asked: {_reason(exc)}") from None

    def _late(self, host: str, proxy: Proxy | None) -> str:
        """Return why there was no connection in time."""
        name, whose = host, "its name"
        if proxy is not None:
            name, whose = proxy.url.host or "", "the name of the proxy that the environment names"
        within = f"within {self._connect_seconds:g} s"
        if isinstance(self._resolver, AiohttpResolver) and self._resolver.is_unanswered(name):
            return f"{host}: {whose} was not answered {within}; {CHECK_NAME_SERVERS}"
        return f"{host}: no connection {within}"

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _open(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._closed:
                raise TokenUnavailable("the sidecar is shutting down and mints no more tokens")
            if self._session is None:
                context: ssl.SSLContext | bool = True
                if not self._direct:
                    # Milliseconds of disk and CPU at best, so not on the loop.
                    context = await self._blocking.run(
                        _trusting_context, place="the file of trusted certificates", seconds=FILE_SECONDS
                    )
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(resolver=self._resolver, ssl=context, limit=16),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"user-agent": f"cloudrun-sidecar/{__version__}", "accept-encoding": "identity"},
                    timeout=aiohttp.ClientTimeout(total=_TOTAL_SECONDS, connect=self._connect_seconds),
                )
            return self._session


def _trusting_context() -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, or those in $SSL_CERT_FILE.

    OpenSSL would wait for somebody to write into a named pipe, and read a device without end. What else is wrong with
    the file, it takes for a file without authorities.
    """
    named = os.environ.get("SSL_CERT_FILE")
    if named:
        try:
            read_regular(named, _MOST_TRUST_OCTETS)
        except (NotRegularFile, FileTooLarge) as exc:
            raise TokenUnavailable(
                f"SSL_CERT_FILE names {quoted(named)}, which cannot be used: {exc.strerror}"
            ) from None
        except OSError:
            pass
    return ssl.create_default_context()


def _reason(exc: Exception) -> str:
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            why = getattr(exc.certificate_error, "verify_message", "") or "TLS failed"
            if why in ("certificate is not yet valid", "certificate has expired"):
                return f"its certificate does not verify ({why}); is the clock of this machine right?"
            return f"its certificate does not verify ({why}); $SSL_CERT_FILE names the trusted ones, if set"
        case aiohttp.ClientProxyConnectionError():
            return "the proxy that the environment names cannot be reached"
        case aiohttp.ClientHttpProxyError(status=407):
            return "the proxy that the environment names wants a login (407); put USER:PASSWORD@ into its URL"
        case aiohttp.ClientHttpProxyError(status=status):
            return f"the proxy that the environment names does not let it through ({status})"
        case aiohttp.ClientConnectorDNSError():
            return "its name does not resolve"
        case aiohttp.ClientConnectorError():
            return exc.os_error.strerror or type(exc.os_error).__name__
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case OSError(strerror=str() as text) if text:
            return text
        case _:
            return type(exc).__name__

"""The sockets of the emulated Google: metadata servers on plain HTTP, the API hosts on one TLS port."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from email.utils import formatdate
from typing import Final, Protocol

from aiohttp import web

from proxy.emulator.certificates import Certificates
from proxy.emulator.clouds import AwsMetadata, AzureMetadata
from proxy.emulator.google import Google
from proxy.emulator.iam import IamCredentials
from proxy.emulator.metadata import MetadataServer
from proxy.emulator.model import Endpoint, Fault
from proxy.emulator.oauth import OAuth
from proxy.emulator.projects import ResourceManager
from proxy.emulator.public_keys import PublicKeys
from proxy.emulator.responses import apply_fault, web_page
from proxy.emulator.sockets import address, bind
from proxy.emulator.sts import TokenExchange

__all__ = ["API_HOSTS", "GoogleServer"]

API_HOSTS: Final[Mapping[str, Endpoint]] = {
    "iamcredentials.googleapis.com": "iam",
    "oauth2.googleapis.com": "oauth",
    "sts.googleapis.com": "sts",
    "cloudresourcemanager.googleapis.com": "projects",
    "www.googleapis.com": "keys",
    "www.gstatic.com": "keys",
}
"""The API hosts, which DNS has to resolve to the TLS port, and their endpoints."""

API_PATHS: Final[Mapping[str, Endpoint]] = {
    "/v1/projects/": "iam", "/v1/locations/": "iam", "/token": "oauth",
    "/v1/token": "sts", "/v1/oauthtoken": "sts", "/v1/introspect": "sts",
    "/oauth2/": "keys", "/iap/": "keys",
}  # fmt: skip

METADATA_PORT_PATHS: Final[Mapping[str, Endpoint]] = {"/latest/": "aws", "/metadata/": "azure"}
"""Paths of other endpoints on the metadata server's port."""

SHUTDOWN_SECONDS: Final = 0.2

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Endpoint(Protocol):
    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response: ...


class GoogleServer:
    """Async context manager: listens from entry to exit.

    Entry binds the ports (0: free ones) and raises CannotListen. For a request to one of `API_HOSTS`, the TLS port is
    that host only. For a request to any other name or address, the path selects the host, for files with their own
    `token_uri` or `token_url`. The metadata servers of AWS and Azure have paths of their own on the metadata port.
    The certificate is valid for `API_HOSTS` and `host`. `control` handles the paths below `/emulator/` on the
    metadata port; faults do not apply to them, and they are not counted.
    """

    def __init__(
        self,
        google: Google,
        certificates: Certificates,
        *,
        host: str = "127.0.0.1",
        metadata_port: int = 0,
        tls_port: int = 0,
        control: Handler | None = None,
    ) -> None:
        self.google = google
        self.metadata_address = ""
        """`host:port` of the metadata server, for `GCE_METADATA_HOST`; set on entry."""
        self.tls_address = ""
        """`host:port` of the API hosts; set on entry."""
        self._certificates = certificates
        self._host = host
        self._metadata_port = metadata_port
        self._tls_port = tls_port
        self._control = control
        self._stack = AsyncExitStack()
        self._endpoints: dict[Endpoint, _Endpoint] = {
            "metadata": MetadataServer(google),
            "iam": IamCredentials(google),
            "oauth": OAuth(google),
            "sts": TokenExchange(google),
            "projects": ResourceManager(google),
            "keys": PublicKeys(google),
            "aws": AwsMetadata(google),
            "azure": AzureMetadata(google),
        }

    @property
    def token_uri(self) -> str:
        """The OAuth token endpoint at this server's address, for key files where DNS cannot be changed."""
        return f"https://{self.tls_address}/token"

    @property
    def token_url(self) -> str:
        """The token exchange at this server's address, for federation files."""
        return f"https://{self.tls_address}/v1/token"

    async def __aenter__(self) -> GoogleServer:
        async with AsyncExitStack() as stack:
            self.metadata_address = await self._listen(stack, self._metadata, self._metadata_port, None)
            self.tls_address = await self._listen(stack, self._api, self._tls_port, self._tls())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _listen(self, stack: AsyncExitStack, handler: Handler, port: int, tls: ssl.SSLContext | None) -> str:
        bound = stack.enter_context(bind(self._host, port))
        # Cancelled when the client disconnects: otherwise a task of `Fault.HANG` would live until shutdown.
        server = web.Server(handler, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, bound, ssl_context=tls).start()
        return address(bound)

    def _tls(self) -> ssl.SSLContext:
        names = dict.fromkeys((*API_HOSTS, "localhost", "127.0.0.1", "::1", self._host))
        return self._certificates.server_context(*names)

    async def _metadata(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._control is not None and request.path.startswith("/emulator/"):
            return await self._control(request)
        elsewhere = next((kind for path, kind in METADATA_PORT_PATHS.items() if request.path.startswith(path)), None)
        return await self._serve(elsewhere or "metadata", request)

    async def _api(self, request: web.BaseRequest) -> web.StreamResponse:
        name = request.host.partition(":")[0].lower()
        endpoint = API_HOSTS.get(name)
        if endpoint is None:
            endpoint = next((kind for path, kind in API_PATHS.items() if request.path.startswith(path)), None)
        if endpoint is None:
            return web_page(404, "No emulated API host has this path.")
        return await self._serve(endpoint, request)

    async def _serve(self, endpoint: Endpoint, request: web.BaseRequest) -> web.StreamResponse:
        self.google.calls[endpoint] += 1
        fault = self.google.pending_faults[endpoint].take()
        if fault is not None:
            response = await apply_fault(fault, endpoint, request, slow_seconds=self.google.slow_seconds)
            if response is not None:
                return response
        response = await self._endpoints[endpoint].handle(request, expired=fault is Fault.EXPIRED)
        # The emulated clock, so that a client can find out that its own clock is wrong.
        response.headers["Date"] = formatdate(self.google.clock(), usegmt=True)
        return response

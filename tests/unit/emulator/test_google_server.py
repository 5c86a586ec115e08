from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.auth import transport
from google.oauth2 import credentials, id_token, service_account

from proxy.emulator import API_HOSTS, CannotListen, Certificates, Google, GoogleServer
from proxy.emulator.model import SCOPE
from tests.support.emulated import AUDIENCE, CALLER, Names, claims_of, trusting

IAP_KEYS = "https://www.gstatic.com/iap/verify/public_key"


class _Response(transport.Response):
    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self._status, self._headers, self._data = status, headers, data

    @property
    def status(self) -> int:
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers

    @property
    def data(self) -> bytes:
        return self._data


class _Request(transport.Request):
    """google-auth's HTTP transport over aiohttp, for calls from another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: aiohttp.ClientSession) -> None:
        self._loop, self._client = loop, client

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> _Response:
        return asyncio.run_coroutine_threadsafe(self._send(url, method, body, headers), self._loop).result(10)

    async def _send(self, url: str, method: str, body: bytes | None, headers: Mapping[str, str] | None) -> _Response:
        async with self._client.request(method, url, data=body, headers=headers) as response:
            return _Response(response.status, dict(response.headers), await response.read())


def _pem(key: dict[str, str]) -> str:
    """Return the public key of a JSON Web Key (RFC 7518, 6.2 and 6.3)."""
    numbers = {
        name: int.from_bytes(base64.urlsafe_b64decode(key[name] + "=="), "big") for name in "nexy" if name in key
    }
    public = (
        rsa.RSAPublicNumbers(numbers["e"], numbers["n"]).public_key()
        if key["kty"] == "RSA"
        else ec.EllipticCurvePublicNumbers(numbers["x"], numbers["y"], ec.SECP256R1()).public_key()
    )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(serialization.Encoding.PEM, form).decode()


@pytest.mark.asyncio
async def test_google_auth_itself_gets_its_tokens(certificates: Certificates) -> None:
    google = Google()
    loop = asyncio.get_running_loop()
    async with GoogleServer(google, certificates) as server:
        connector = aiohttp.TCPConnector(resolver=Names(server.tls_address), ssl=trusting(certificates.ca_file))
        async with aiohttp.ClientSession(connector=connector) as client:
            request = _Request(loop, client)
            sources = (
                service_account.IDTokenCredentials.from_service_account_info(  # type: ignore[no-untyped-call]  # google-auth
                    google.key_file(CALLER), target_audience=AUDIENCE
                ),
                service_account.Credentials.from_service_account_info(google.key_file(CALLER), scopes=[SCOPE]),  # type: ignore[no-untyped-call]  # google-auth
                credentials.Credentials.from_authorized_user_info(google.user_file("person@example.com")),  # type: ignore[no-untyped-call]  # google-auth
            )
            with ThreadPoolExecutor(1) as thread:
                for source in sources:
                    await loop.run_in_executor(thread, source.refresh, request)
                # What a service does with the tokens that it gets.
                caller = await loop.run_in_executor(
                    thread, id_token.verify_oauth2_token, sources[0].token, request, AUDIENCE
                )
                now = int(google.clock())
                signed = google.iap_key.sign({"aud": "/projects/1", "email": CALLER, "iat": now, "exp": now + 600})
                assertion = await loop.run_in_executor(
                    thread, id_token.verify_token, signed, request, "/projects/1", IAP_KEYS
                )
                assert caller["email"] == assertion["email"] == CALLER
            expected = {**google.certificates(), google.iap_key.key_id: google.iap_key.public_pem}
            for place in ("www.googleapis.com/oauth2/v3/certs", "www.gstatic.com/iap/verify/public_key-jwk"):
                async with client.get(f"https://{place}") as response:
                    (key,) = (await response.json())["keys"]
                    assert _pem(key) == expected[key["kid"]]
    identity, account, user = sources
    assert claims_of(identity.token)["email"] == CALLER
    for source, principal in ((account, CALLER), (user, "person@example.com")):
        access = google.access(source.token)
        assert access is not None
        assert access.principal == principal


@pytest.mark.asyncio
async def test_each_host_serves_only_its_own_paths(client: aiohttp.ClientSession, google: Google) -> None:
    for method, path in (
        ("POST", "/v1/projects/-/serviceAccounts/a@b:generateIdToken"),
        ("POST", "/token"),
        ("POST", "/v1/token"),
        ("GET", "/v1/projects/1"),
        ("GET", "/iap/verify/public_key"),
    ):
        answered = 0
        for host in API_HOSTS:
            async with client.request(method, f"https://{host}{path}") as response:
                answered += response.status != 404
        assert answered == 1
    assert google.calls == {"iam": 5, "oauth": 5, "sts": 5, "projects": 5, "keys": 10}


@pytest.mark.asyncio
async def test_the_servers_own_address_serves_all_paths(server: GoogleServer, certificates: Certificates) -> None:
    tls = trusting(certificates.ca_file)
    paths = {"/token": 400, "/v1/token": 400, "/v1/projects/-/serviceAccounts/a@b:generateIdToken": 401, "/": 404}
    async with aiohttp.ClientSession() as client:
        for path, status in paths.items():
            async with client.post(f"https://{server.tls_address}{path}", ssl=tls) as response:
                assert response.status == status
    assert server.token_uri == f"https://{server.tls_address}/token"


@pytest.mark.asyncio
async def test_the_metadata_server_has_no_tls_and_the_api_hosts_require_it(
    server: GoogleServer, certificates: Certificates
) -> None:
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientError):
            await client.get(f"https://{server.metadata_address}/", ssl=trusting(certificates.ca_file))
        with pytest.raises(aiohttp.ClientError):
            await client.get(f"http://{server.tls_address}/token")


@pytest.mark.asyncio
async def test_it_can_listen_on_port_443(certificates: Certificates) -> None:
    async with GoogleServer(Google(), certificates, host="127.77.0.1", tls_port=0) as server:
        port = int(server.tls_address.rpartition(":")[2])
        with pytest.raises(CannotListen, match=f"127.77.0.1:{port}"):
            async with GoogleServer(Google(), certificates, host="127.77.0.1", tls_port=port):
                pass
    # A server that failed to start, and one that has stopped, do not hold the port.
    async with GoogleServer(Google(), certificates, host="127.77.0.1", tls_port=port) as server:
        assert server.tls_address == f"127.77.0.1:{port}"


@pytest.mark.asyncio
async def test_it_stops_while_connections_are_kept_alive(certificates: Certificates) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as client:
        server = await GoogleServer(Google(), certificates).__aenter__()
        async with client.get(f"http://{server.metadata_address}/") as response:
            assert response.status == 200
        await server.__aexit__(None, None, None)


@pytest.mark.asyncio
async def test_errors_are_json_in_googles_format(client: aiohttp.ClientSession) -> None:
    url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@b:generateIdToken"
    async with client.post(url) as response:
        error = json.loads(await response.read())["error"]
    assert {"code", "message", "status"} <= error.keys()

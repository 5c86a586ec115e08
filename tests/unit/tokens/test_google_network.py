"""The way from the mint to Google: certificates, HTTP proxies, endpoints, and silence."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from proxy.errors import CredentialsInvalid, Failure, ProxyInvalid, TokenUnavailable
from proxy.tokens import google as google_module
from proxy.tokens import http_client
from proxy.tokens.google import GoogleMint
from tests.unit.tokens.conftest import Authority, Home
from tests.unit.tokens.fake_google import FakeGoogle, says_nothing, silent_and_sets
from tests.unit.tokens.values import ATTACHED, IMPERSONATED, KEY, TARGET


@pytest.mark.asyncio
async def test_an_untrusted_certificate_fails_the_mint(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    home.file(key_info)
    with pytest.raises(
        TokenUnavailable, match=r"oauth2\.googleapis\.com .*certificate does not verify .*SSL_CERT_FILE"
    ):
        await mint(KEY)
    assert google.calls == []


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
async def test_an_endless_trust_store_is_refused(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    key_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    os.mkfifo(home.folder / "pipe")
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/zero" if kind == "a device" else str(home.folder / "pipe"))
    home.file(key_info)
    for _ in range(2):
        with pytest.raises(TokenUnavailable, match=r"SSL_CERT_FILE names .*: it is not a regular file"):
            await mint(KEY)
    assert google.calls == []


@pytest.mark.parametrize("state", ["expired", "not_yet_valid"])
@pytest.mark.asyncio
async def test_a_certificate_of_another_time_is_reported_with_the_clock_as_a_possible_cause(
    google: FakeGoogle, home: Home, key_info: dict[str, Any], authority: Authority, state: str
) -> None:
    over = FakeGoogle()
    await over.start(getattr(authority, state))
    mint = GoogleMint(environment=home.environment, resolver=over.names())
    home.file(key_info)
    with pytest.raises(TokenUnavailable, match=r"\(certificate .*\); is the clock of this machine right\?"):
        await mint(KEY)
    await mint.close()
    await over.stop()


@pytest.mark.asyncio
async def test_calls_to_google_go_through_the_proxy_of_the_environment(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    home.file(key_info)
    with pytest.raises(
        TokenUnavailable, match="through the proxy that the environment names: the proxy cannot be reached"
    ):
        await mint(KEY)


@pytest.mark.asyncio
async def test_an_unusable_proxy_is_reported_at_the_first_call(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://ada:hunter2@127.0.0.1:9")
    home.file(key_info)
    with pytest.raises(ProxyInvalid, match=r"the variable https_proxy, .*SOCKS"):
        await mint(KEY)
    assert google.calls == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "why"), [(407, r"requires a login \(407\)"), (403, r"does not let it through \(403 No\)")]
)
async def test_a_refusal_of_the_proxy_differs_from_one_of_google(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    key_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    why: str,
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    home.file(key_info)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        with pytest.raises(TokenUnavailable, match=why):
            await mint(KEY)


@pytest.mark.asyncio
async def test_a_proxy_gets_its_login_and_a_host_in_no_proxy_goes_without(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    home.file(key_info)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("https_proxy", f"ada:secret@127.0.0.1:{port}")
        with pytest.raises(TokenUnavailable):
            await mint(KEY)
        monkeypatch.setenv("no_proxy", "oauth2.googleapis.com")
        await mint(KEY)
    (head,) = heads
    assert head.startswith(b"CONNECT oauth2.googleapis.com:443 ")
    assert b"proxy-authorization: basic ywrhonnly3jlda==" in head.lower()


@pytest.mark.asyncio
async def test_logins_in_netrc_are_not_for_google(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    user_info: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login ada password of-another-place\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    home.file(user_info)
    google.allow_impersonation(("user@example.com", TARGET))
    assert (await mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_local_endpoint_is_called_without_the_proxy(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    key_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    home.file({**key_info, "token_uri": f"http://{host}:{google.metadata_port}/token"})
    with pytest.raises(Failure):
        await mint(KEY)
    assert google.calls == [(f"{host}:{google.metadata_port}", "/token")]


@pytest.mark.asyncio
async def test_an_endpoint_that_is_no_url_fails_the_mint(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file({**key_info, "token_uri": "https://"})
    with pytest.raises(CredentialsInvalid, match="token_uri is not an http"):
        await mint(KEY)
    home.file({**key_info, "token_uri": "https://a..b/token"})
    with pytest.raises(TokenUnavailable, match="could not be asked"):
        await mint(KEY)


@pytest.mark.asyncio
async def test_a_failed_connection_is_unavailable(
    home: Home, monkeypatch: pytest.MonkeyPatch, key_info: dict[str, Any]
) -> None:
    class Slow(AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = None) -> Any:
            await asyncio.Event().wait()

        async def close(self) -> None:
            return None

    monkeypatch.setattr(google_module, "_CONNECT_SECONDS", 0.01)
    home.file(key_info)
    mint = GoogleMint(environment=home.environment, resolver=Slow())
    with pytest.raises(TokenUnavailable, match=r"oauth2\.googleapis\.com: no connection within 0\.01 s"):
        await mint(KEY)
    await mint.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("where", ["metadata", "key", "impersonation"])
async def test_a_mint_that_was_cancelled_while_google_was_silent_does_not_block_later_ones(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any], where: str
) -> None:
    google.allow_impersonation((ATTACHED, TARGET))
    if where == "key":
        home.file(key_info)
    path = {"metadata": "/identity", "key": "/token", "impersonation": ":generateIdToken"}[where]
    key = IMPERSONATED if where == "impersonation" else KEY
    for _ in range(4):  # the threads are two
        asked = asyncio.Event()
        google.break_next(path, silent_and_sets(asked))
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(mint(key))
            await asked.wait()
            waiter.cancel()
        assert waiter.cancelled()
    assert (await mint(key)).key == key


@pytest.mark.asyncio
async def test_a_silent_google_fails_at_the_deadline(
    google: FakeGoogle, home: Home, monkeypatch: pytest.MonkeyPatch, key_info: dict[str, Any]
) -> None:
    monkeypatch.setattr(http_client, "_TOTAL_SECONDS", 0.3)
    mint = GoogleMint(environment=home.environment, resolver=google.names())
    google.break_next("/token", says_nothing)
    home.file(key_info)
    with pytest.raises(Failure, match=r"oauth2\.googleapis\.com did not answer within 0\.3 s"):
        await mint(KEY)
    await mint.close()


@pytest.mark.asyncio
async def test_a_metadata_server_that_there_is_no_descriptor_for_is_not_missing(google: FakeGoogle, home: Home) -> None:
    home.environment["GCE_METADATA_HOST"] = f"127.0.0.1:{google.metadata_port}"
    before, mint = GoogleMint(environment=home.environment), GoogleMint(environment=home.environment)
    await before(KEY)  # everything is imported
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
    try:
        with pytest.raises(TokenUnavailable, match=r"^127\.0\.0\.1 could not be asked: .*; raise .*\(ulimit -n, "):
            await mint(KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (await mint(KEY)).principal == ATTACHED
    await mint.close()
    await before.close()

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from proxy.errors import CredentialsInvalid, CredentialsNotFound, Failure, ProxyInvalid, TokenUnavailable
from proxy.observe.warnings import Warnings
from proxy.tokens import google as google_module
from proxy.tokens import http_client
from proxy.tokens.google import CredentialInfo, GoogleMint
from proxy.tokens.model import TokenKey
from proxy.tokens.source import TokenSource
from tests.unit.tokens.conftest import KEY_ACCOUNT, Authority, House
from tests.unit.tokens.fakes import AUDIENCE, KEY, FakeGoogle, Fault, Names, says_nothing

ATTACHED = "attached@project.iam.gserviceaccount.com"
TARGET = "target@project.iam.gserviceaccount.com"
OTHER = TokenKey(TARGET, (), AUDIENCE)


def run_python(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def silent_and_sets(asked: asyncio.Event) -> Fault:
    async def silent(request: Any) -> Any:
        asked.set()
        return await says_nothing(request)

    return silent


# whose it is


@pytest.mark.asyncio
async def test_the_principal_is_known_without_a_mint(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    assert await mint.credential_info() == CredentialInfo(None, "metadata.google.internal", ATTACHED)
    assert google.called("/identity") == 0
    path = house.file(key_info)
    asked = len(google.calls)
    file, place, principal = await mint.credential_info()
    assert file is not None
    assert (file.kind, place, principal) == ("service_account", str(path), KEY_ACCOUNT)
    assert len(google.calls) == asked


@pytest.mark.asyncio
async def test_an_unreachable_metadata_server_is_an_error_with_its_reason(house: House) -> None:
    mint = GoogleMint(environment=house.environment, resolver=Names({}))
    with pytest.raises(CredentialsNotFound, match="no Google credentials"):
        await mint.credential_info()
    await mint.close()


# Nothing before the first need


def test_google_auth_is_not_imported_and_no_file_read_before_the_first_mint() -> None:
    assert (
        run_python(
            """
            import asyncio, os, sys, threading
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = "/nonexistent/key.json"
            opened = []

            def notice(event, args):
                if event in ("open", "socket.connect"):
                    opened.append(str(args))

            sys.addaudithook(notice)
            from proxy.tokens.google import GoogleMint
            from proxy.tokens.source import TokenSource
            from proxy.tokens.model import TokenKey
            from proxy.errors import CredentialsInvalid

            async def main():
                mint = GoogleMint()
                source = TokenSource(mint)
                assert source.slot(TokenKey(None, (), "https://a")).usable_token(0.0) is None
                assert not [name for name in sys.modules if name.split(".")[0] == "google"]
                assert not [line for line in opened if "nonexistent" in line or "169.254" in line]
                assert threading.active_count() == 1
                try:
                    await source.token(TokenKey(None, (), "https://a"))
                except CredentialsInvalid:
                    print("asked only now")
                assert not [name for name in sys.modules if name.split(".")[0] == "google"]
                await source.close()
                await mint.close()

            asyncio.run(main())
            """
        ).splitlines()[-1]
        == "asked only now"
    )


def test_the_requests_package_is_neither_needed_nor_there() -> None:
    """With it google-auth would take other ways, and no test in here would show that they are closed."""
    assert run_python("import importlib.util; print(importlib.util.find_spec('requests'))") == "None"


# Application Default Credentials


@pytest.mark.asyncio
async def test_a_file_goes_before_the_metadata_server_and_may_come_and_go(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    assert (await mint(KEY)).principal == ATTACHED
    house.file(key_info)
    assert (await mint(KEY)).principal == KEY_ACCOUNT
    del house.environment["GOOGLE_APPLICATION_CREDENTIALS"]
    assert (await mint(KEY)).principal == ATTACHED


@pytest.mark.asyncio
async def test_a_changed_file_is_taken_up_at_the_next_mint(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any], user_info: dict[str, Any]
) -> None:
    google.accounts.add(TARGET)
    google.may_impersonate |= {(KEY_ACCOUNT, TARGET), ("user@example.com", TARGET)}
    house.file(key_info)
    await mint(OTHER)
    house.file(user_info)
    await mint(OTHER)
    assert google.called("/token") == 2
    house.file("")
    with pytest.raises(CredentialsInvalid):
        await mint(OTHER)
    house.file(user_info)
    assert (await mint(OTHER)).principal == TARGET


# The way there


@pytest.mark.asyncio
async def test_an_untrusted_certificate_stops_the_mint(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    house.file(key_info)
    with pytest.raises(
        TokenUnavailable, match=r"oauth2\.googleapis\.com .*certificate does not verify .*SSL_CERT_FILE"
    ):
        await mint(KEY)
    assert google.calls == []


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
async def test_a_trust_store_that_never_ends_is_refused(
    google: FakeGoogle,
    house: House,
    mint: GoogleMint,
    key_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    os.mkfifo(house.folder / "pipe")
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/zero" if kind == "a device" else str(house.folder / "pipe"))
    house.file(key_info)
    for _ in range(2):
        with pytest.raises(TokenUnavailable, match=f"SSL_CERT_FILE names .*, which cannot be used: it is {kind}"):
            await mint(KEY)
    assert google.calls == []


@pytest.mark.asyncio
async def test_a_certificate_that_is_over_may_mean_that_the_clock_is_wrong(
    google: FakeGoogle, house: House, key_info: dict[str, Any], authority: Authority
) -> None:
    over = FakeGoogle()
    await over.start(authority.expired)
    mint = GoogleMint(environment=house.environment, resolver=over.names())
    house.file(key_info)
    with pytest.raises(TokenUnavailable, match=r"\(certificate has expired\); is the clock of this machine right\?"):
        await mint(KEY)
    await mint.close()
    await over.stop()


@pytest.mark.asyncio
async def test_calls_to_google_go_through_the_proxy_of_the_environment(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    house.file(key_info)
    with pytest.raises(TokenUnavailable, match="the proxy that the environment names cannot be reached"):
        await mint(KEY)


@pytest.mark.asyncio
async def test_an_unusable_proxy_is_reported_at_the_first_call(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://ada:hunter2@127.0.0.1:9")
    house.file(key_info)
    with pytest.raises(ProxyInvalid, match=r"the variable https_proxy, .*SOCKS"):
        await mint(KEY)
    assert google.calls == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "why"), [(407, r"wants a login \(407\)"), (403, r"does not let it through \(403\)")]
)
async def test_a_refusal_of_the_proxy_differs_from_one_of_google(
    google: FakeGoogle,
    house: House,
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

    house.file(key_info)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        with pytest.raises(TokenUnavailable, match=why):
            await mint(KEY)


@pytest.mark.asyncio
async def test_a_proxy_gets_its_login_and_a_host_in_no_proxy_goes_without(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    house.file(key_info)
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
    house: House,
    mint: GoogleMint,
    user_info: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login ada password of-another-place\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    house.file(user_info)
    google.accounts.add(TARGET)
    google.may_impersonate.add(("user@example.com", TARGET))
    assert (await mint(OTHER)).principal == TARGET


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_endpoint_nearby_is_called_without_the_proxy(
    google: FakeGoogle,
    house: House,
    mint: GoogleMint,
    key_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    house.file({**key_info, "token_uri": f"http://{host}:{google.metadata_port}/token"})
    with pytest.raises(Failure):
        await mint(KEY)
    assert google.calls == [(f"{host}:{google.metadata_port}", "/token")]


@pytest.mark.asyncio
async def test_an_endpoint_that_is_no_url_is_a_failure(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    house.file({**key_info, "token_uri": "https://"})
    with pytest.raises(CredentialsInvalid, match="token_uri is not an http"):
        await mint(KEY)
    house.file({**key_info, "token_uri": "https://a..b/token"})
    with pytest.raises(TokenUnavailable, match="could not be asked"):
        await mint(KEY)


@pytest.mark.asyncio
async def test_a_connection_that_does_not_come_about_is_unavailable(
    house: House, monkeypatch: pytest.MonkeyPatch, key_info: dict[str, Any]
) -> None:
    class Slow(AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = None) -> Any:
            await asyncio.Event().wait()

        async def close(self) -> None:
            return None

    monkeypatch.setattr(google_module, "_CONNECT_SECONDS", 0.01)
    house.file(key_info)
    mint = GoogleMint(environment=house.environment, resolver=Slow())
    with pytest.raises(TokenUnavailable, match=r"oauth2\.googleapis\.com: no connection within 0\.01 s"):
        await mint(KEY)
    await mint.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("where", ["metadata", "key", "impersonation"])
async def test_a_mint_cancelled_in_a_google_that_says_nothing_blocks_nothing_after(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any], where: str
) -> None:
    google.accounts.add(TARGET)
    google.may_impersonate.add((ATTACHED, TARGET))
    if where == "key":
        house.file(key_info)
    path = {"metadata": "/identity", "key": "/token", "impersonation": ":generateIdToken"}[where]
    key = OTHER if where == "impersonation" else KEY
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
async def test_silence_has_a_deadline_of_its_own(
    google: FakeGoogle, house: House, monkeypatch: pytest.MonkeyPatch, key_info: dict[str, Any]
) -> None:
    monkeypatch.setattr(http_client, "_TOTAL_SECONDS", 0.3)
    mint = GoogleMint(environment=house.environment, resolver=google.names())
    google.break_next("/token", says_nothing)
    house.file(key_info)
    with pytest.raises(Failure, match=r"oauth2\.googleapis\.com did not answer within 0\.3 s"):
        await mint(KEY)
    await mint.close()


# The end


@pytest.mark.asyncio
async def test_closing_breaks_a_mint_off(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    house.file(key_info)
    asked = asyncio.Event()
    google.break_next("/token", silent_and_sets(asked))
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(asyncio.wait_for(asyncio.gather(mint(KEY), return_exceptions=True), 30))
        await asked.wait()
        await mint.close()
    assert isinstance(waiter.result()[0], TokenUnavailable)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["metadata", "key"])
async def test_after_closing_nothing_is_minted(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any], kind: str
) -> None:
    if kind == "key":
        house.file(key_info)
    await mint(KEY)
    await mint.close()
    calls = len(google.calls)
    with pytest.raises(TokenUnavailable, match="shutting down"):
        await mint(KEY)
    assert len(google.calls) == calls


@pytest.mark.asyncio
async def test_a_mint_that_was_never_used_closes(house: House) -> None:
    await GoogleMint(environment=house.environment).close()


# Together with the source


@pytest.mark.asyncio
async def test_500_cold_requests_are_one_mint(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    house.file(key_info)
    source = TokenSource(mint)
    tokens = await asyncio.gather(*(source.token(KEY) for _ in range(500)))
    assert len({token.authorization for token in tokens}) == 1
    assert google.called("/token") == 1
    await source.close()


# Secrets


@pytest.mark.asyncio
async def test_no_secret_reaches_a_log_or_a_failure(
    google: FakeGoogle,
    house: House,
    mint: GoogleMint,
    key_info: dict[str, Any],
    user_info: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    log_lines: list[Any],
    told: Callable[[BaseException], str],
) -> None:
    caplog.set_level(logging.DEBUG)
    google.accounts.add(TARGET)
    google.may_impersonate |= {(ATTACHED, TARGET), (KEY_ACCOUNT, TARGET), ("user@example.com", TARGET)}
    source = TokenSource(mint, observer=Warnings())
    texts: list[str] = []

    async def ask_everything() -> None:
        for info in (None, key_info, user_info):
            if info is None:
                house.environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
            else:
                house.file(info)
            for key in (KEY, OTHER):
                try:
                    token = await source.mint_uncached(key)
                except Failure as failure:
                    texts.append(told(failure))
                else:
                    google.secrets.add(token.authorization.decode())
                    texts.append(repr(token) + str(token))

    await ask_everything()
    google.may_impersonate.clear()
    google.keys.clear()
    google.users.clear()
    await ask_everything()
    await source.close()

    assert len(google.secrets) > 15
    everything = caplog.text + repr(log_lines) + "".join(texts) + repr(mint) + repr(source)
    for secret in google.secrets:
        assert secret not in everything
    assert {line["event"] for line in log_lines} == {"token minted", "token mint failed"}

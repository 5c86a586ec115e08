"""The mint on Google: what it needs before the first mint, its credentials, its end, and its secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import CredentialsInvalid, CredentialsNotFound, Failure, TokenUnavailable
from proxy.observe.warnings import Warnings
from proxy.tokens.google import CredentialInfo, GoogleMint
from proxy.tokens.source import TokenSource
from tests.unit.tokens.conftest import KEY_ACCOUNT, Home
from tests.unit.tokens.fake_google import FakeGoogle, Names, silent_and_sets
from tests.unit.tokens.values import ATTACHED, IMPERSONATED, KEY, TARGET


def run_python(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Whose it is


@pytest.mark.asyncio
async def test_the_principal_is_known_without_a_mint(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    assert await mint.credential_info() == CredentialInfo(None, "metadata.google.internal", ATTACHED)
    assert google.called("/identity") == 0
    path = home.file(key_info)
    asked = len(google.calls)
    file, place, principal = await mint.credential_info()
    assert file is not None
    assert (file.kind, place, principal) == ("service_account", str(path), KEY_ACCOUNT)
    assert len(google.calls) == asked


@pytest.mark.asyncio
async def test_an_unreachable_metadata_server_is_an_error_with_its_reason(home: Home) -> None:
    mint = GoogleMint(environment=home.environment, resolver=Names({}))
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


@pytest.mark.parametrize("kind", ["key", "user", "federation"])
def test_no_mint_imports_the_requests_package(
    tmp_path: Path, key_info: dict[str, Any], user_info: dict[str, Any], kind: str
) -> None:
    """The extra for traces brings it; with it google-auth could call Google in ways that no test here sees."""
    (tmp_path / "subject").write_text("subject-token")
    nowhere = "http://127.0.0.1:1/token"
    federation = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": nowhere,
        "credential_source": {"file": str(tmp_path / "subject")},
    }
    info = {"key": {**key_info, "token_uri": nowhere}, "user": {**user_info, "token_uri": nowhere}}.get(
        kind, federation
    )
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(info))
    said = run_python(
        f"""
        import asyncio, sys

        class Refuses:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "requests":
                    sys.exit("requests is imported")

        sys.meta_path.insert(0, Refuses())
        from proxy.errors import TokenUnavailable
        from proxy.tokens.google import GoogleMint
        from proxy.tokens.model import TokenKey

        async def main():
            mint = GoogleMint(environment={{"GOOGLE_APPLICATION_CREDENTIALS": {str(file)!r}, "HOME": "/nonexistent"}})
            try:
                await mint(TokenKey("target@project.iam.gserviceaccount.com", (), "https://a"))
            except TokenUnavailable:
                print("google-auth" if "google.auth" in sys.modules else "without google-auth")
            await mint.close()

        asyncio.run(main())
        """
    )
    assert said == "google-auth"


# Application Default Credentials


@pytest.mark.asyncio
async def test_a_file_has_precedence_over_the_metadata_server_while_it_exists(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    assert (await mint(KEY)).principal == ATTACHED
    home.file(key_info)
    assert (await mint(KEY)).principal == KEY_ACCOUNT
    del home.environment["GOOGLE_APPLICATION_CREDENTIALS"]
    assert (await mint(KEY)).principal == ATTACHED


@pytest.mark.asyncio
async def test_a_changed_file_takes_effect_at_the_next_mint(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any], user_info: dict[str, Any]
) -> None:
    google.allow_impersonation((KEY_ACCOUNT, TARGET), ("user@example.com", TARGET))
    home.file(key_info)
    await mint(IMPERSONATED)
    home.file(user_info)
    await mint(IMPERSONATED)
    assert google.called("/token") == 2
    home.file("")
    with pytest.raises(CredentialsInvalid):
        await mint(IMPERSONATED)
    home.file(user_info)
    assert (await mint(IMPERSONATED)).principal == TARGET


# The end


@pytest.mark.asyncio
async def test_closing_cancels_a_mint(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file(key_info)
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
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any], kind: str
) -> None:
    if kind == "key":
        home.file(key_info)
    await mint(KEY)
    await mint.close()
    calls = len(google.calls)
    with pytest.raises(TokenUnavailable, match="shutting down"):
        await mint(KEY)
    assert len(google.calls) == calls


@pytest.mark.asyncio
async def test_a_mint_that_was_never_used_closes(home: Home) -> None:
    await GoogleMint(environment=home.environment).close()


# Together with the source


@pytest.mark.asyncio
async def test_500_requests_without_a_token_share_one_mint(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file(key_info)
    source = TokenSource(mint, mint_timeout_seconds=60.0)
    tokens = await asyncio.gather(*(source.token(KEY) for _ in range(500)))
    assert len({token.authorization for token in tokens}) == 1
    assert google.called("/token") == 1
    await source.close()


# Secrets


@pytest.mark.asyncio
async def test_no_secret_reaches_a_log_or_a_failure(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    key_info: dict[str, Any],
    user_info: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    log_lines: list[Any],
    told: Callable[[BaseException], str],
) -> None:
    caplog.set_level(logging.DEBUG)
    google.allow_impersonation((ATTACHED, TARGET), (KEY_ACCOUNT, TARGET), ("user@example.com", TARGET))
    source = TokenSource(mint, observer=Warnings())
    texts: list[str] = []

    async def ask_everything() -> None:
        for info in (None, key_info, user_info):
            if info is None:
                home.environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
            else:
                home.file(info)
            for key in (KEY, IMPERSONATED):
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

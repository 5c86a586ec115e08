"""Access tokens of key files and user credentials, through google-auth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from proxy.errors import (
    CredentialsInvalid,
    CredentialsRejected,
    Failure,
    ImpersonationDenied,
    MintRefused,
    TokenMalformed,
    TokenUnavailable,
)
from proxy.tokens.calls import Reply
from proxy.tokens.credentials import google_auth
from proxy.tokens.credentials.authorized_user import AuthorizedUser
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import TokenKey
from tests.unit.tokens.conftest import KEY_ACCOUNT, Home
from tests.unit.tokens.fake_google import FakeGoogle, answers, error_answer, resets
from tests.unit.tokens.values import IMPERSONATED, KEY, TARGET

# Key files


@pytest.mark.asyncio
async def test_a_key_file_mints_for_its_own_account(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file(key_info)
    token = await mint(KEY)
    assert (token.principal, token.key) == (KEY_ACCOUNT, KEY)
    assert google.calls == [("oauth2.googleapis.com", "/token")]


@pytest.mark.asyncio
async def test_a_key_file_is_a_source_for_impersonation(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file(key_info)
    google.allow_impersonation((KEY_ACCOUNT, TARGET))
    for _ in range(3):
        assert (await mint(IMPERSONATED)).principal == TARGET
    assert google.called("/token") == 1


@pytest.mark.asyncio
async def test_many_keys_at_once_need_one_access_token(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file(key_info)
    google.allow_impersonation((KEY_ACCOUNT, TARGET))
    keys = [TokenKey(TARGET, (), f"https://{number}") for number in range(30)]
    tokens = await asyncio.gather(*map(mint, keys))
    assert [token.key for token in tokens] == keys
    assert google.called("/token") == 1


@pytest.mark.asyncio
async def test_a_revoked_key_is_rejected_and_the_file_named(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    path = home.file(key_info)
    google.keys.clear()
    for key in (KEY, IMPERSONATED):
        with pytest.raises(CredentialsRejected) as caught:
            await mint(key)
        assert str(path) in str(caught.value)
        assert "invalid_grant: Invalid grant: account not found" in str(caught.value)
        assert "create a new key" in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("private_key", ["junk", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"])
@pytest.mark.parametrize("key", [KEY, IMPERSONATED])
async def test_an_invalid_private_key_gets_one_sentence(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    key_info: dict[str, Any],
    told: Callable[[BaseException], str],
    private_key: str,
    key: TokenKey,
) -> None:
    path = home.file({**key_info, "private_key": private_key})
    with pytest.raises(CredentialsInvalid, match=f"the private_key in {path} is not an RSA key in PEM form") as caught:
        await mint(key)
    assert "MIIE" not in told(caught.value)
    assert google.calls == []


@pytest.mark.asyncio
@pytest.mark.parametrize("key", [KEY, IMPERSONATED])
@pytest.mark.parametrize(
    ("status", "body", "leaf"),
    [
        (503, "<html>eyJzZWNyZXQi</html>", TokenUnavailable),
        (500, '{"error": "internal_failure"}', TokenUnavailable),
        (429, "", TokenUnavailable),
        (302, "", TokenUnavailable),
        (403, "<html>eyJzZWNyZXQi</html>", MintRefused),
        (400, '{"error": ["eyJzZWNyZXQi"]}', MintRefused),
        (400, '["eyJzZWNyZXQi"]', MintRefused),
        (401, '{"error": "invalid_client"}', CredentialsRejected),
        (200, "<html>eyJzZWNyZXQi</html>", TokenMalformed),
        (200, "", TokenMalformed),
        (200, '["eyJzZWNyZXQi"]', TokenMalformed),
        (200, "{}", TokenMalformed),
        (200, '{"id_token": 5, "access_token": 5}', TokenMalformed),
        (200, '{"id_token": "eyJzZWNyZXQi", "access_token": "eyJzZWNyZXQi é"}', TokenMalformed),
        (200, '{"id_token": "eyJzZWNyZXQi.eyJzZWNyZXQi.x", "access_token": ""}', TokenMalformed),
        (200, '{"note": "eyJzZWNyZXQi"}', TokenMalformed),
    ],
)
async def test_every_error_of_the_token_endpoint_is_a_failure_that_quotes_no_secret(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    key_info: dict[str, Any],
    told: Callable[[BaseException], str],
    key: TokenKey,
    status: int,
    body: str,
    leaf: type[Failure],
) -> None:
    home.file(key_info)
    google.break_next("/token", answers(status, body, Location="https://elsewhere/"))
    with pytest.raises(leaf) as caught:
        await mint(key)
    assert type(caught.value) is leaf
    assert "eyJzZWNyZXQi" not in told(caught.value)
    assert "<html>" not in told(caught.value)
    assert len(google.calls) == 1  # google-auth did not sleep and repeat


@pytest.mark.asyncio
async def test_a_token_endpoint_that_resets_is_unavailable(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file(key_info)
    google.break_next("/token", resets)
    with pytest.raises(TokenUnavailable, match=r"oauth2\.googleapis\.com could not be asked"):
        await mint(KEY)
    assert (await mint(KEY)).principal == KEY_ACCOUNT


# User credentials


@pytest.mark.asyncio
async def test_user_credentials_are_a_source_for_impersonation(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    home.file({**user_info, "quota_project_id": "payer"})
    google.allow_impersonation(("user@example.com", TARGET))
    assert (await mint(IMPERSONATED)).principal == TARGET
    assert google.quota_projects == ["payer"]


@pytest.mark.asyncio
async def test_the_quota_project_of_the_environment_goes_before_the_files(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    home.file({**user_info, "quota_project_id": "payer"})
    home.environment["GOOGLE_CLOUD_QUOTA_PROJECT"] = "other-payer"
    google.allow_impersonation(("user@example.com", TARGET))
    await mint(IMPERSONATED)
    assert google.quota_projects == ["other-payer"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error",
    [
        {"error": "invalid_grant", "error_description": "Token has been expired or revoked."},
        {"error": "invalid_grant", "error_subtype": "invalid_rapt"},
        {"error": "deleted_client", "error_description": "The OAuth client was deleted."},
    ],
)
async def test_expired_user_credentials_get_the_login_command(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any], error: dict[str, str]
) -> None:
    path = home.file(user_info)
    google.break_next("/token", error_answer(lambda: web.json_response(error, status=400)))
    with pytest.raises(CredentialsRejected, match="run `gcloud auth application-default login`") as caught:
        await mint(IMPERSONATED)
    assert str(path) in str(caught.value)


@pytest.mark.asyncio
async def test_a_denied_user_is_named(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    home.file(user_info)
    google.accounts.add(TARGET)
    with pytest.raises(ImpersonationDenied, match=r"user@example\.com may not impersonate"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
async def test_the_file_is_named_for_a_denied_user_without_a_name(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    path = home.file({**user_info, "account": ""})
    google.accounts.add(TARGET)
    with pytest.raises(ImpersonationDenied, match=rf"user credentials \({path}\) may not impersonate"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
async def test_a_malformed_id_token_leaves_the_user_without_a_name(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    path = home.file({**user_info, "account": ""})
    google.accounts.add(TARGET)
    for id_token in ('"junk"', "5"):
        answer = f'{{"access_token": "ya29.unknown", "expires_in": 3599, "id_token": {id_token}}}'
        google.break_next("/token", answers(200, answer))
        google.break_next("/token", answers(200, answer))
        google.break_next(":generateIdToken", error_answer(lambda: web.json_response({}, status=403)))
        with pytest.raises(ImpersonationDenied, match=rf"user credentials \({path}\) may not impersonate"):
            await mint(IMPERSONATED)
        google.faults.clear()


# The lent HTTP


def test_transport_options_are_not_dropped_silently(user_info: dict[str, Any]) -> None:
    def unused(method: str, url: str, headers: object, body: bytes | None = None) -> Reply:
        raise AssertionError

    file = AuthorizedUser("user.json", b"digest", user_info)
    credentials = file.load(None)
    credentials.refresh = lambda request: request("https://x", cert=("a", "b"))
    with pytest.raises(CredentialsInvalid, match="TransportError"):
        google_auth.access_token(file, credentials, None, time.time, unused)

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import AmbientUnsupported, CredentialsInvalid, ImpersonationDenied, TokenMalformed
from proxy.tokens.google import GoogleMint
from tests.unit.tokens.conftest import KEY_ACCOUNT, Home
from tests.unit.tokens.fake_google import FakeGoogle, answers
from tests.unit.tokens.values import IMPERSONATED, KEY, TARGET

MIDDLE = "middle@project.iam.gserviceaccount.com"

FEDERATED = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "credential_source": {"file": "/nowhere"},
}
WORKFORCE = {
    "type": "external_account_authorized_user",
    "audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/q",
    "client_id": "c",
    "client_secret": "s",
    "refresh_token": "r",
    "token_url": "https://sts.googleapis.com/v1/oauthtoken",
}


def impersonated(source: dict[str, Any], **extra: Any) -> dict[str, Any]:
    url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{MIDDLE}:generateAccessToken"
    return {
        "type": "impersonated_service_account",
        "service_account_impersonation_url": url,
        "source_credentials": source,
        **extra,
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["authorized_user", "external_account", "external_account_authorized_user"])
async def test_a_source_without_id_tokens_names_three_remedies_and_makes_no_call(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any], kind: str
) -> None:
    info = {"authorized_user": user_info, "external_account": FEDERATED, "external_account_authorized_user": WORKFORCE}
    path = home.file(info[kind])
    with pytest.raises(AmbientUnsupported) as caught:
        await mint(KEY)
    text = str(caught.value)
    assert str(path) in text
    assert "set gcp_impersonate_service_account on the route" in text
    assert "service account's key file" in text
    assert "metadata server" in text
    assert google.calls == []


@pytest.mark.asyncio
async def test_an_impersonated_file_mints_for_its_target(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    home.file(impersonated(user_info))
    google.allow_impersonation(("user@example.com", MIDDLE))
    token = await mint(KEY)
    assert (token.principal, token.key) == (MIDDLE, KEY)


@pytest.mark.asyncio
async def test_an_impersonated_file_goes_through_its_delegates(
    google: FakeGoogle, home: Home, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    delegates = ["projects/-/serviceAccounts/first@p.iam.gserviceaccount.com"]
    home.file(impersonated(key_info, delegates=delegates))
    google.accounts.add(MIDDLE)
    google.may_impersonate |= {
        (KEY_ACCOUNT, "first@p.iam.gserviceaccount.com"),
        ("first@p.iam.gserviceaccount.com", MIDDLE),
    }
    assert (await mint(KEY)).principal == MIDDLE
    assert google.bodies[0]["delegates"] == delegates


@pytest.mark.asyncio
async def test_impersonation_on_top_of_an_impersonated_file_goes_through_its_target(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    home.file(impersonated(user_info, quota_project_id="payer"))
    google.accounts |= {MIDDLE, TARGET}
    google.may_impersonate |= {("user@example.com", MIDDLE), (MIDDLE, TARGET)}
    for _ in range(2):
        assert (await mint(IMPERSONATED)).principal == TARGET
    assert google.called(":generateAccessToken") == 1
    assert google.quota_projects == ["payer"] * 3


@pytest.mark.asyncio
async def test_the_missing_grant_of_a_chain_is_named(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    home.file(impersonated(user_info))
    google.accounts |= {MIDDLE, TARGET}
    with pytest.raises(
        ImpersonationDenied, match=rf"user@example\.com .* {MIDDLE}: grant it roles/iam\.serviceAccountTok"
    ):
        await mint(IMPERSONATED)
    google.may_impersonate.add(("user@example.com", MIDDLE))
    with pytest.raises(ImpersonationDenied, match=f"{MIDDLE} may not impersonate {TARGET}"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    ["{}", '{"accessToken": "ya29.secret"}', '{"accessToken": "ya29.secret", "expireTime": "ya29.secret"}', "[]"],
)
async def test_an_access_token_without_an_expiry_is_malformed(
    google: FakeGoogle, home: Home, mint: GoogleMint, user_info: dict[str, Any], body: str
) -> None:
    home.file(impersonated(user_info))
    google.break_next(":generateAccessToken", answers(200, body))
    with pytest.raises(TokenMalformed) as caught:
        await mint(IMPERSONATED)
    assert "ya29.secret" not in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"service_account_impersonation_url": "https://x/y"}, "names no service account"),
        (
            {"service_account_impersonation_url": "https://x/serviceAccounts/a@b@c:generateAccessToken"},
            "names no service account",
        ),
        ({"delegates": "a@b"}, "delegates are not a list"),
        ({"delegates": [5]}, "delegates are not a list"),
        ({"source_credentials": {"type": "foo"}}, r"\(source_credentials\) has the type"),
        ({"source_credentials": impersonated({"type": "foo"})}, "impersonated again"),
    ],
)
async def test_an_impersonated_file_that_contradicts_itself_is_invalid(
    home: Home, mint: GoogleMint, user_info: dict[str, Any], extra: dict[str, Any], what: str
) -> None:
    path = home.file({**impersonated(user_info), **extra})
    with pytest.raises(CredentialsInvalid, match=what) as caught:
        await mint(KEY)
    assert str(path) in str(caught.value)

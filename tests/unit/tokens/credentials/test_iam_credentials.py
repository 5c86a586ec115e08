from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web

from proxy.errors import (
    CredentialsRejected,
    Failure,
    ImpersonationDenied,
    MintRefused,
    TokenMalformed,
    TokenUnavailable,
)
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import TokenKey
from tests.unit.tokens.fake_google import FakeGoogle, answers, api_error, error_answer, resets
from tests.unit.tokens.values import ATTACHED, AUDIENCE, IMPERSONATED, TARGET

FIRST, SECOND = "first@project.iam.gserviceaccount.com", "second@project.iam.gserviceaccount.com"
METHOD = ":generateIdToken"


@pytest.fixture
def allowed(google: FakeGoogle) -> FakeGoogle:
    google.allow_impersonation((ATTACHED, TARGET))
    return google


@pytest.mark.asyncio
async def test_iam_is_asked_for_the_audience_with_the_email_claim(allowed: FakeGoogle, mint: GoogleMint) -> None:
    token = await mint(IMPERSONATED)
    assert token.key == IMPERSONATED
    assert token.principal == TARGET
    assert allowed.bodies == [{"audience": AUDIENCE, "includeEmail": True}]


@pytest.mark.asyncio
async def test_delegates_are_named_in_their_order(google: FakeGoogle, mint: GoogleMint) -> None:
    google.accounts.add(TARGET)
    google.may_impersonate |= {(ATTACHED, FIRST), (FIRST, SECOND), (SECOND, TARGET)}
    assert (await mint(TokenKey(TARGET, (FIRST, SECOND), AUDIENCE))).principal == TARGET
    assert google.bodies[0]["delegates"] == [
        f"projects/-/serviceAccounts/{FIRST}",
        f"projects/-/serviceAccounts/{SECOND}",
    ]


@pytest.mark.asyncio
async def test_a_denied_impersonation_names_role_account_principal_and_what_iam_said(
    google: FakeGoogle, mint: GoogleMint
) -> None:
    google.accounts.add(TARGET)
    with pytest.raises(ImpersonationDenied) as caught:
        await mint(IMPERSONATED)
    text = str(caught.value)
    assert f"{ATTACHED} may not impersonate {TARGET}" in text
    assert "roles/iam.serviceAccountOpenIdTokenCreator" in text
    assert "Permission 'iam.serviceAccounts.getOpenIdToken' denied" in text
    assert "delegates" not in text


@pytest.mark.asyncio
async def test_a_denied_chain_names_the_role_of_each_link(google: FakeGoogle, mint: GoogleMint) -> None:
    google.accounts.add(TARGET)
    with pytest.raises(ImpersonationDenied) as caught:
        await mint(TokenKey(TARGET, (FIRST,), AUDIENCE))
    text = str(caught.value)
    assert f"{ATTACHED} may not impersonate {TARGET} by way of its delegates: " in text
    assert f"grant {FIRST} roles/iam.serviceAccountOpenIdTokenCreator (Google's reference asks for" in text
    assert f"and {ATTACHED}, and each delegate but the last, roles/iam.serviceAccountTokenCreator on the next" in text


@pytest.mark.asyncio
async def test_a_denial_is_reported_without_a_known_principal(google: FakeGoogle, mint: GoogleMint) -> None:
    google.accounts.add(TARGET)
    google.break_next("/email", resets)
    google.break_next("/email", resets)  # aiohttp asks again once, as it may with a GET
    with pytest.raises(ImpersonationDenied, match="the attached service account may not impersonate"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("SERVICE_DISABLED", r"gcloud services enable iamcredentials\.googleapis\.com"),
        ("USER_PROJECT_DENIED", rf"{ATTACHED} may not use the quota project: grant it roles/serviceusage\."),
        ("ACCESS_TOKEN_SCOPE_INSUFFICIENT", "must include cloud-platform"),
    ],
)
async def test_a_403_for_another_reason_is_not_blamed_on_the_role(
    allowed: FakeGoogle, mint: GoogleMint, reason: str, advice: str
) -> None:
    allowed.break_next(METHOD, error_answer(lambda: api_error(403, "no", reason)))
    with pytest.raises(MintRefused, match=advice) as caught:
        await mint(IMPERSONATED)
    assert "roles/iam." not in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [400, 403])
async def test_a_disabled_account_is_not_blamed_on_the_role(allowed: FakeGoogle, mint: GoogleMint, status: int) -> None:
    allowed.break_next(METHOD, error_answer(lambda: api_error(status, f"Service account {TARGET} is disabled.")))
    with pytest.raises(MintRefused, match=f"^the service account {TARGET} is disabled") as caught:
        await mint(IMPERSONATED)
    assert f"gcloud iam service-accounts enable {TARGET}" in str(caught.value)
    assert "roles/" not in str(caught.value)


@pytest.mark.asyncio
async def test_an_account_that_does_not_exist_is_named(google: FakeGoogle, mint: GoogleMint) -> None:
    with pytest.raises(MintRefused, match=f"the service account {TARGET} does not exist"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
@pytest.mark.parametrize("missing", [FIRST, SECOND, TARGET])
async def test_the_member_of_a_chain_that_iam_does_not_know_is_named(
    allowed: FakeGoogle, mint: GoogleMint, missing: str
) -> None:
    allowed.break_next(
        METHOD, error_answer(lambda: api_error(404, f"Not found; Gaia id not found for email {missing}"))
    )
    with pytest.raises(MintRefused, match=f"^the service account {missing} does not exist") as caught:
        await mint(TokenKey(TARGET, (FIRST, SECOND), AUDIENCE))
    assert "gcp_delegates" in str(caught.value)
    assert "gcloud iam service-accounts create" in str(caught.value)


@pytest.mark.asyncio
async def test_the_account_of_a_chain_is_named_only_if_iam_names_it(allowed: FakeGoogle, mint: GoogleMint) -> None:
    allowed.break_next(METHOD, error_answer(lambda: api_error(404, "Requested entity was not found.")))
    with pytest.raises(MintRefused, match=f"^one of the service accounts {FIRST}, {TARGET} does not exist"):
        await mint(TokenKey(TARGET, (FIRST,), AUDIENCE))


@pytest.mark.asyncio
@pytest.mark.parametrize(("named", "caller"), [(FIRST, ATTACHED), (SECOND, FIRST)])
async def test_the_link_of_a_chain_that_iam_refused_is_named(
    allowed: FakeGoogle, mint: GoogleMint, named: str, caller: str
) -> None:
    text = f"Permission 'iam.serviceAccounts.implicitDelegation' denied on projects/-/serviceAccounts/{named}."
    allowed.break_next(METHOD, error_answer(lambda: api_error(403, text, "IAM_PERMISSION_DENIED")))
    with pytest.raises(
        ImpersonationDenied, match=f"^{caller} may not impersonate {named}, a delegate on the way"
    ) as caught:
        await mint(TokenKey(TARGET, (FIRST, SECOND), AUDIENCE))
    assert "grant it roles/iam.serviceAccountTokenCreator" in str(caught.value)


@pytest.mark.asyncio
async def test_a_refused_audience_is_reported_with_a_question(google: FakeGoogle, mint: GoogleMint) -> None:
    google.allow_impersonation((ATTACHED, TARGET))
    with pytest.raises(MintRefused, match="is the audience right"):
        await mint(TokenKey(TARGET, (), ""))


@pytest.mark.asyncio
async def test_a_stale_access_token_is_renewed_once_and_the_call_repeated(
    allowed: FakeGoogle, mint: GoogleMint
) -> None:
    await mint(IMPERSONATED)
    allowed.revoke_access_tokens()
    assert (await mint(IMPERSONATED)).principal == TARGET
    assert allowed.called("/token") == 2
    assert allowed.called(METHOD) == 3


@pytest.mark.asyncio
async def test_a_rejected_access_token_is_replaced_once_and_then_the_mint_fails(
    allowed: FakeGoogle, mint: GoogleMint
) -> None:
    for _ in range(2):
        allowed.break_next(METHOD, error_answer(lambda: api_error(401, "invalid authentication credentials")))
    with pytest.raises(
        CredentialsRejected, match=f"access token of {ATTACHED} .*; see whether that identity is disabled"
    ):
        await mint(IMPERSONATED)
    assert allowed.called(METHOD) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "remedy"),
    [(429, "; .* raise its quota"), *((status, "; .* incident") for status in (500, 502, 503, 504)), (302, "")],
)
async def test_transient_statuses_are_unavailable(
    allowed: FakeGoogle, mint: GoogleMint, status: int, remedy: str
) -> None:
    allowed.break_next(METHOD, answers(status, "<html>eyJzZWNyZXQi</html>", Location="https://elsewhere/"))
    with pytest.raises(TokenUnavailable, match=rf"IAM answered {status} \(\[not shown\]\){remedy}$"):
        await mint(IMPERSONATED)
    assert allowed.called(METHOD) == 1


@pytest.mark.asyncio
async def test_a_reset_connection_is_unavailable(allowed: FakeGoogle, mint: GoogleMint) -> None:
    allowed.break_next(METHOD, resets)
    allowed.break_next(METHOD, resets)
    with pytest.raises(TokenUnavailable, match=r"iamcredentials\.googleapis\.com could not be asked"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>eyJzZWNyZXQi</html>",
        "[]",
        "{}",
        '{"token": 5}',
        '{"token": "eyJzZWNyZXQi"}',
        '{"idToken": "eyJzZWNyZXQi"}',
    ],
)
async def test_junk_with_status_200_is_no_token_and_not_quoted(
    allowed: FakeGoogle, mint: GoogleMint, told: Callable[[BaseException], str], body: str
) -> None:
    allowed.break_next(METHOD, answers(200, body))
    with pytest.raises(TokenMalformed) as caught:
        await mint(IMPERSONATED)
    assert "eyJzZWNyZXQi" not in told(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("account", "delegates"), [("a@b/../c", ()), ("a@b:signBlob?", ()), ("", ()), (TARGET, ("x y",))]
)
async def test_a_name_that_would_change_the_url_is_refused_before_any_call(
    google: FakeGoogle, mint: GoogleMint, account: str, delegates: tuple[str, ...]
) -> None:
    with pytest.raises(MintRefused, match="not the e-mail of a service account"):
        await mint(TokenKey(account, delegates, AUDIENCE))
    assert google.calls == []


@pytest.mark.asyncio
async def test_an_endless_response_is_cut(allowed: FakeGoogle, mint: GoogleMint) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            await asyncio.sleep(0)  # the client is on the same loop, and has to read

    allowed.break_next(METHOD, endless)
    with pytest.raises(Failure, match="more than 256 KiB"):
        await mint(IMPERSONATED)

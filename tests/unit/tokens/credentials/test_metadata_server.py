from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web

from proxy.errors import (
    AmbientUnsupported,
    CredentialsInvalid,
    CredentialsNotFound,
    Failure,
    ImpersonationDenied,
    MintRefused,
    TokenMalformed,
    TokenUnavailable,
)
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import TokenKey
from tests.unit.tokens.conftest import Home
from tests.unit.tokens.fake_google import FakeGoogle, Names, answers, metadata_answers, resets
from tests.unit.tokens.values import ATTACHED, AUDIENCE, KEY, TARGET

OTHER = TokenKey(TARGET, (), AUDIENCE)


@pytest.mark.asyncio
async def test_without_a_file_the_metadata_server_mints(google: FakeGoogle, mint: GoogleMint) -> None:
    token = await mint(KEY)
    assert token.principal == ATTACHED
    assert token.key == KEY
    assert google.calls == [
        ("metadata.google.internal", "/computeMetadata/v1/instance/service-accounts/default/identity")
    ]


@pytest.mark.asyncio
async def test_an_audience_with_special_characters_arrives_unchanged(google: FakeGoogle, mint: GoogleMint) -> None:
    seen: list[str] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append(request.query["audience"])
        return await metadata_answers(503)(request)

    google.break_next("/identity", look)
    audience = "https://a.run.app/päth?x=1&format=none#f +%2F"
    with pytest.raises(TokenUnavailable):
        await mint(TokenKey(None, (), audience))
    assert seen == [audience]


@pytest.mark.asyncio
async def test_a_metadata_server_that_does_not_know_format_is_asked_again_without_it(
    google: FakeGoogle, mint: GoogleMint
) -> None:
    google.metadata_knows_format = False
    assert (await mint(KEY)).principal == ATTACHED
    assert google.called("/identity") == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("variable", ["GCE_METADATA_HOST", "GCE_METADATA_ROOT"])
async def test_the_environment_names_another_metadata_server(
    google: FakeGoogle, home: Home, mint: GoogleMint, variable: str
) -> None:
    home.environment[variable] = f"127.0.0.1:{google.metadata_port}"
    await mint(KEY)
    assert google.calls[0][0] == f"127.0.0.1:{google.metadata_port}"


@pytest.mark.asyncio
async def test_the_newer_variable_for_the_host_has_precedence(google: FakeGoogle, home: Home, mint: GoogleMint) -> None:
    home.environment["GCE_METADATA_HOST"] = f"127.0.0.1:{google.metadata_port}"
    home.environment["GCE_METADATA_ROOT"] = "nowhere.example"
    assert await mint(KEY) is not None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "host", ["http://metadata", "a/b", "a@b", "a?b", "a:b", "é", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIi.c2ln"]
)
async def test_a_metadata_host_must_be_a_host(google: FakeGoogle, home: Home, mint: GoogleMint, host: str) -> None:
    home.environment["GCE_METADATA_HOST"] = host
    with pytest.raises(CredentialsInvalid, match="GCE_METADATA_HOST must be a host") as caught:
        await mint(KEY)
    assert "eyJ" not in str(caught.value)


@pytest.mark.asyncio
async def test_a_proxy_in_the_environment_does_not_get_metadata_calls(
    google: FakeGoogle, mint: GoogleMint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert (await mint(KEY)).principal == ATTACHED


# Not there


@pytest.mark.asyncio
async def test_the_error_without_credentials_says_what_was_searched(home: Home) -> None:
    mint = GoogleMint(environment=home.environment, resolver=Names({}))
    with pytest.raises(CredentialsNotFound) as caught:
        await mint(KEY)
    text = str(caught.value)
    assert "GOOGLE_APPLICATION_CREDENTIALS is not set" in text
    assert f"{home.folder}/.config/gcloud/application_default_credentials.json" in text
    assert "metadata.google.internal could not be asked: its name does not resolve" in text
    assert "gcloud auth application-default login` (enough only with gcp_impersonate_service_account)" in text
    await mint.close()


@pytest.mark.asyncio
async def test_a_metadata_server_that_refuses_the_connection_is_not_there(google: FakeGoogle, home: Home) -> None:
    await google.stop()
    home.environment["GCE_METADATA_HOST"] = f"127.0.0.1:{google.metadata_port}"
    mint = GoogleMint(environment=home.environment)
    with pytest.raises(CredentialsNotFound, match=r"127\.0\.0\.1 could not be asked: .*[Cc]onnect"):
        await mint(KEY)
    await mint.close()


@pytest.mark.asyncio
async def test_a_metadata_server_that_appears_later_is_used(google: FakeGoogle, mint: GoogleMint) -> None:
    for _ in range(2):  # aiohttp asks again once, as it may with a GET
        google.break_next("/identity", resets)
    google.break_next("/identity", answers(200, "<html>a captive portal</html>"))
    for _ in range(2):
        with pytest.raises(CredentialsNotFound):
            await mint(KEY)
    assert (await mint(KEY)).principal == ATTACHED


@pytest.mark.asyncio
async def test_a_metadata_server_that_answered_before_is_unavailable_and_not_missing(
    google: FakeGoogle, mint: GoogleMint
) -> None:
    await mint(KEY)
    for _ in range(2):
        google.break_next("/identity", resets)
    with pytest.raises(TokenUnavailable):
        await mint(KEY)


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [200, 302, 403, 404])
async def test_a_response_without_the_flavor_is_not_that_of_a_metadata_server(
    google: FakeGoogle, mint: GoogleMint, status: int
) -> None:
    google.break_next("/identity", answers(status, "a.b.c", Location="http://elsewhere/"))
    with pytest.raises(CredentialsNotFound, match=r"what answers at metadata\.google\.internal is not one"):
        await mint(KEY)
    assert len(google.calls) == 1


@pytest.mark.asyncio
async def test_the_metadata_server_is_not_used_with_no_gce_check(
    google: FakeGoogle, home: Home, mint: GoogleMint
) -> None:
    home.environment["NO_GCE_CHECK"] = "true"
    with pytest.raises(CredentialsNotFound, match="NO_GCE_CHECK"):
        await mint(KEY)
    assert google.calls == []


# There, but not willing


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "leaf"),
    [(429, TokenUnavailable), (500, TokenUnavailable), (503, TokenUnavailable), (403, MintRefused)],
)
async def test_each_refusal_of_the_metadata_server_has_its_failure(
    google: FakeGoogle, mint: GoogleMint, status: int, leaf: type[Failure]
) -> None:
    google.break_next("/identity", metadata_answers(status, "eyJ0b2tlbg.html.page"))
    with pytest.raises(leaf, match=f"the metadata server answered {status}") as caught:
        await mint(KEY)
    assert "eyJ0b2tlbg" not in str(caught.value)


@pytest.mark.asyncio
async def test_an_instance_without_a_service_account_gets_the_remedy(google: FakeGoogle, mint: GoogleMint) -> None:
    google.attached = None
    with pytest.raises(MintRefused, match="no default service account"):
        await mint(KEY)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, "two\nlines of text", "answered 403 (two lines of text)"),
        (500, "<html><title>no</title><p>out of order</p></html>", "answered 500 (out of order)"),
        (403, '{"error": {"message": "in JSON"}}', "answered 403 (in JSON)"),
        (
            403,
            "It is disabled.",
            "the attached service account is disabled (it said: It is disabled.): enable it: gcloud",
        ),
        (403, "", "answered 403:"),
        (404, "nobody there", "no default service account (404: nobody there)"),
        (403, "x" * 1_000_000, f"answered 403 ({'x' * 499}…)"),
        (429, "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "answered 429 ([not shown])"),
    ],
)
async def test_the_message_of_the_metadata_server_is_quoted(
    google: FakeGoogle, mint: GoogleMint, status: int, body: str, said: str
) -> None:
    google.break_next("/identity", metadata_answers(status, body))
    google.break_next("/email", metadata_answers(404, ""))
    with pytest.raises(Failure) as caught:
        await mint(KEY)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


# GKE

UNLINKED = (
    "Unable to generate identity token: the Kubernetes service account ns/ksa\n"
    "has no annotation iam.gke.io/gcp-service-account\n"
)
NOT_A_USER = (
    "Unable to generate access token; IAM returned 403 Forbidden: Permission 'iam.serviceAccounts.getAccessToken' "
    "denied on resource (or it may not exist).\nThis error could be caused by a missing IAM policy binding on the "
    "target IAM service account.\n"
)
PRINCIPAL = (
    "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/my-project.svc.id.goog"
    "/subject/ns/NS/sa/KSA"
)


@pytest.mark.asyncio
@pytest.mark.parametrize("email", ["my-project.svc.id.goog", "default"])
@pytest.mark.parametrize("said", [UNLINKED, "404 page not found"])
async def test_a_pod_without_a_linked_account_gets_both_remedies(
    google: FakeGoogle, mint: GoogleMint, email: str, said: str
) -> None:
    google.break_next("/identity", metadata_answers(404, said))
    google.break_next("/email", metadata_answers(200, email))
    google.break_next("/project-id", metadata_answers(200, "my-project"))
    google.break_next("/numeric-project-id", metadata_answers(200, "123456789012"))
    with pytest.raises(AmbientUnsupported) as caught:
        await mint(KEY)
    text = str(caught.value)
    assert " ".join(said.split()) in text
    assert "kubectl annotate serviceaccount KSA --namespace NS iam.gke.io/gcp-service-account=ACCOUNT" in text
    assert "roles/iam.workloadIdentityUser on ACCOUNT to serviceAccount:my-project.svc.id.goog[NS/KSA]" in text
    assert "If the route impersonates no account, add the annotation" in text
    assert f"roles/iam.serviceAccountOpenIdTokenCreator on ACCOUNT to {PRINCIPAL}" in text
    assert "attach" not in text


@pytest.mark.asyncio
async def test_unknown_parts_of_a_pods_identity_are_placeholders_in_capitals(
    google: FakeGoogle, mint: GoogleMint
) -> None:
    google.attached = None
    google.break_next("/identity", metadata_answers(404, UNLINKED))
    with pytest.raises(AmbientUnsupported) as caught:
        await mint(KEY)
    assert "projects/NUMBER/locations/global/workloadIdentityPools/PROJECT.svc.id.goog/" in str(caught.value)


@pytest.mark.asyncio
async def test_a_pod_that_may_not_use_its_linked_account_gets_the_role_as_remedy(
    google: FakeGoogle, mint: GoogleMint
) -> None:
    google.break_next("/identity", metadata_answers(403, NOT_A_USER))
    google.break_next("/token", metadata_answers(403, NOT_A_USER))
    for key in (KEY, OTHER):
        with pytest.raises(ImpersonationDenied) as caught:
            await mint(key)
        text = str(caught.value)
        assert f"grant roles/iam.workloadIdentityUser on {ATTACHED} to serviceAccount:PROJECT.svc.id.goog" in text
        assert " ".join(NOT_A_USER.split()) in text


@pytest.mark.asyncio
async def test_the_role_of_an_unlinked_pod_is_granted_to_a_principal_and_not_to_its_pool(
    google: FakeGoogle, mint: GoogleMint
) -> None:
    google.accounts.add(TARGET)
    google.break_next("/email", metadata_answers(200, "my-project.svc.id.goog"))
    google.break_next("/numeric-project-id", metadata_answers(200, "123456789012"))
    with pytest.raises(ImpersonationDenied) as caught:
        await mint(OTHER)
    assert str(caught.value).startswith(
        f"{PRINCIPAL} may not impersonate {TARGET}: grant it roles/iam.serviceAccountOpen"
    )


@pytest.mark.asyncio
async def test_an_unlinked_pod_without_an_access_token_gets_the_annotation_as_remedy(
    google: FakeGoogle, mint: GoogleMint
) -> None:
    google.break_next("/token", metadata_answers(404, UNLINKED))
    google.break_next("/email", metadata_answers(200, "my-project.svc.id.goog"))
    with pytest.raises(AmbientUnsupported, match="Add the annotation") as caught:
        await mint(OTHER)
    assert "gcp_impersonate_service_account" not in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("body", ["", "<html>eyJzZWNyZXQi</html>", "eyJzZWNyZXQi.x", "é" * 9, "x" * 300_000])
async def test_junk_with_status_200_is_no_token_and_not_quoted(
    google: FakeGoogle, mint: GoogleMint, told: Callable[[BaseException], str], body: str
) -> None:
    google.break_next("/identity", metadata_answers(200, body))
    with pytest.raises((TokenMalformed, TokenUnavailable, CredentialsNotFound)) as caught:
        await mint(KEY)
    assert "eyJzZWNyZXQi" not in told(caught.value)


@pytest.mark.asyncio
async def test_concurrent_calls_to_the_metadata_server_are_limited(google: FakeGoogle, mint: GoogleMint) -> None:
    here, most = 0, 0

    async def count(request: web.Request) -> web.StreamResponse:
        nonlocal here, most
        here += 1
        most = max(most, here)
        loop = asyncio.get_running_loop()
        later = loop.create_future()
        loop.call_later(0.005, later.set_result, None)
        await later
        here -= 1
        return await metadata_answers(503)(request)

    for _ in range(20):
        google.break_next("/identity", count)
    keys = [TokenKey(None, (), f"https://{number}") for number in range(20)]
    await asyncio.gather(*map(mint, keys), return_exceptions=True)
    assert 1 < most <= 4


# As a source for impersonation


@pytest.mark.asyncio
async def test_impersonation_uses_the_attached_accounts_access_token(google: FakeGoogle, mint: GoogleMint) -> None:
    google.allow_impersonation((ATTACHED, TARGET))
    assert (await mint(OTHER)).principal == TARGET
    assert (await mint(OTHER)).principal == TARGET
    assert google.called("/token") == 1
    assert google.quota_projects == [None, None]


@pytest.mark.asyncio
async def test_the_quota_project_of_the_environment_is_sent_to_iam(
    google: FakeGoogle, home: Home, mint: GoogleMint
) -> None:
    home.environment["GOOGLE_CLOUD_QUOTA_PROJECT"] = "payer"
    google.allow_impersonation((ATTACHED, TARGET))
    await mint(OTHER)
    assert google.quota_projects == ["payer"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"access_token": "ya29.x"}',
        '{"access_token": "a\\r\\nb", "expires_in": 9}',
        '{"expires_in": 9}',
        '{"access_token": "ya29.x", "expires_in": 1e400}',
        '{"access_token": "ya29.x", "expires_in": NaN}',
        f'{{"access_token": "ya29.x", "expires_in": 1{"0" * 400}}}',
    ],
)
async def test_a_junk_access_token_is_malformed(google: FakeGoogle, mint: GoogleMint, body: str) -> None:
    google.break_next("/token", metadata_answers(200, body))
    with pytest.raises(TokenMalformed) as caught:
        await mint(OTHER)
    assert "ya29" not in str(caught.value)

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
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
from tests.unit.tokens.conftest import KEY_ACCOUNT, House
from tests.unit.tokens.fakes import (
    AUDIENCE,
    KEY,
    FakeGoogle,
    answers,
    error_answer,
    resets,
)

TARGET = "target@project.iam.gserviceaccount.com"
OTHER = TokenKey(TARGET, (), AUDIENCE)


@pytest.fixture
def federated_info(house: House, google: FakeGoogle) -> dict[str, Any]:
    """Workload identity federation with a subject token in a file."""
    (house.folder / "subject").write_text("subject-token-of-the-pod")
    google.subject_tokens["subject-token-of-the-pod"] = "principal://pool/subject/pod"
    return {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": str(house.folder / "subject")},
    }


def may_impersonate(google: FakeGoogle, *pairs: tuple[str, str]) -> None:
    google.accounts |= {account for _, account in pairs}
    google.may_impersonate |= set(pairs)


# Key files


@pytest.mark.asyncio
async def test_a_key_file_mints_for_its_own_account(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    house.file(key_info)
    token = await mint(KEY)
    assert (token.principal, token.key) == (KEY_ACCOUNT, KEY)
    assert google.calls == [("oauth2.googleapis.com", "/token")]


@pytest.mark.asyncio
async def test_a_key_file_is_a_source_for_impersonation(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    house.file(key_info)
    may_impersonate(google, (KEY_ACCOUNT, TARGET))
    for _ in range(3):
        assert (await mint(OTHER)).principal == TARGET
    assert google.called("/token") == 1


@pytest.mark.asyncio
async def test_many_keys_at_once_need_one_access_token(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    house.file(key_info)
    may_impersonate(google, (KEY_ACCOUNT, TARGET))
    keys = [TokenKey(TARGET, (), f"https://{number}") for number in range(30)]
    tokens = await asyncio.gather(*map(mint, keys))
    assert [token.key for token in tokens] == keys
    assert google.called("/token") == 1


@pytest.mark.asyncio
async def test_a_revoked_key_is_rejected_and_the_file_named(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    path = house.file(key_info)
    google.keys.clear()
    for key in (KEY, OTHER):
        with pytest.raises(CredentialsRejected) as caught:
            await mint(key)
        assert str(path) in str(caught.value)
        assert "invalid_grant: Invalid grant: account not found" in str(caught.value)
        assert "create a new key" in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("private_key", ["junk", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"])
@pytest.mark.parametrize("key", [KEY, OTHER])
async def test_a_bad_private_key_is_one_sentence(
    google: FakeGoogle,
    house: House,
    mint: GoogleMint,
    key_info: dict[str, Any],
    told: Callable[[BaseException], str],
    private_key: str,
    key: TokenKey,
) -> None:
    path = house.file({**key_info, "private_key": private_key})
    with pytest.raises(CredentialsInvalid, match=f"the private_key in {path} is not an RSA key in PEM form") as caught:
        await mint(key)
    assert "MIIE" not in told(caught.value)
    assert google.calls == []


@pytest.mark.asyncio
@pytest.mark.parametrize("key", [KEY, OTHER])
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
    house: House,
    mint: GoogleMint,
    key_info: dict[str, Any],
    told: Callable[[BaseException], str],
    key: TokenKey,
    status: int,
    body: str,
    leaf: type[Failure],
) -> None:
    house.file(key_info)
    google.break_next("/token", answers(status, body, Location="https://elsewhere/"))
    with pytest.raises(leaf) as caught:
        await mint(key)
    assert type(caught.value) is leaf
    assert "eyJzZWNyZXQi" not in told(caught.value)
    assert "<html>" not in told(caught.value)
    assert len(google.calls) == 1  # google-auth did not sleep and repeat


@pytest.mark.asyncio
async def test_a_token_endpoint_that_resets_is_unavailable(
    google: FakeGoogle, house: House, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    house.file(key_info)
    google.break_next("/token", resets)
    with pytest.raises(TokenUnavailable, match=r"oauth2\.googleapis\.com could not be asked"):
        await mint(KEY)
    assert (await mint(KEY)).principal == KEY_ACCOUNT


# User credentials


@pytest.mark.asyncio
async def test_user_credentials_are_a_source_for_impersonation(
    google: FakeGoogle, house: House, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    house.file({**user_info, "quota_project_id": "payer"})
    may_impersonate(google, ("user@example.com", TARGET))
    assert (await mint(OTHER)).principal == TARGET
    assert google.quota_projects == ["payer"]


@pytest.mark.asyncio
async def test_the_quota_project_of_the_environment_goes_before_the_files(
    google: FakeGoogle, house: House, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    house.file({**user_info, "quota_project_id": "payer"})
    house.environment["GOOGLE_CLOUD_QUOTA_PROJECT"] = "other-payer"
    may_impersonate(google, ("user@example.com", TARGET))
    await mint(OTHER)
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
async def test_user_credentials_that_are_over_name_the_login_command(
    google: FakeGoogle, house: House, mint: GoogleMint, user_info: dict[str, Any], error: dict[str, str]
) -> None:
    path = house.file(user_info)
    google.break_next("/token", error_answer(lambda: web.json_response(error, status=400)))
    with pytest.raises(CredentialsRejected, match="run `gcloud auth application-default login`") as caught:
        await mint(OTHER)
    assert str(path) in str(caught.value)


@pytest.mark.asyncio
async def test_a_denied_user_is_named(
    google: FakeGoogle, house: House, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    house.file(user_info)
    google.accounts.add(TARGET)
    with pytest.raises(ImpersonationDenied, match=r"user@example\.com may not impersonate"):
        await mint(OTHER)


@pytest.mark.asyncio
async def test_a_denied_user_without_a_name_is_named_by_the_file(
    google: FakeGoogle, house: House, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    path = house.file({**user_info, "account": ""})
    google.accounts.add(TARGET)
    with pytest.raises(ImpersonationDenied, match=rf"user credentials \({path}\) may not impersonate"):
        await mint(OTHER)


@pytest.mark.asyncio
async def test_an_id_token_that_is_none_leaves_the_user_without_a_name(
    google: FakeGoogle, house: House, mint: GoogleMint, user_info: dict[str, Any]
) -> None:
    path = house.file({**user_info, "account": ""})
    google.accounts.add(TARGET)
    for id_token in ('"junk"', "5"):
        answer = f'{{"access_token": "ya29.unknown", "expires_in": 3599, "id_token": {id_token}}}'
        google.break_next("/token", answers(200, answer))
        google.break_next("/token", answers(200, answer))
        google.break_next(":generateIdToken", error_answer(lambda: web.json_response({}, status=403)))
        with pytest.raises(ImpersonationDenied, match=rf"user credentials \({path}\) may not impersonate"):
            await mint(OTHER)
        google.faults.clear()


# Federation


@pytest.mark.asyncio
async def test_federation_is_a_source_for_impersonation(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    house.file(federated_info)
    may_impersonate(google, ("principal://pool/subject/pod", TARGET))
    assert (await mint(OTHER)).principal == TARGET
    assert google.called("/v1/token") == 1


@pytest.mark.asyncio
async def test_federation_goes_through_the_account_its_file_names(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    middle = "middle@project.iam.gserviceaccount.com"
    url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{middle}:generateAccessToken"
    house.file({**federated_info, "service_account_impersonation_url": url})
    may_impersonate(google, (middle, TARGET))
    google.accounts.add(middle)
    with pytest.raises(ImpersonationDenied, match=r"roles/iam\.workloadIdentityUser"):
        await mint(OTHER)
    may_impersonate(google, ("principal://pool/subject/pod", middle))
    assert (await mint(OTHER)).principal == TARGET


@pytest.mark.asyncio
async def test_a_subject_token_that_is_refused_names_the_file(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any], told: Callable[[Any], str]
) -> None:
    path = house.file(federated_info)
    google.subject_tokens.clear()
    with pytest.raises(CredentialsRejected, match=f"identity provider in {path}") as caught:
        await mint(OTHER)
    assert "subject-token-of-the-pod" not in told(caught.value)


@pytest.mark.asyncio
async def test_a_subject_token_file_that_is_missing_is_named(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    house.file({**federated_info, "credential_source": {"file": "/nowhere/subject"}})
    with pytest.raises(CredentialsInvalid, match="File '/nowhere/subject' was not found"):
        await mint(OTHER)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("content", "kind", "what"),
    [
        (None, None, r"\('/.*/pipe'\) cannot be used: it is a named pipe"),
        (b"\xff", None, "is not text"),
        (b"", None, "has no subject token"),
        (b"x" * (1 << 20) + b"x", None, "larger than 1024 KiB"),
        (b'{"a": "eyJzZWNyZXQi"}', {"type": "json", "subject_token_field_name": "b"}, "Unable to parse subject_token"),
        (b'["eyJzZWNyZXQi"]', {"type": "json", "subject_token_field_name": "b"}, "Unable to parse subject_token"),
        (b"eyJzZWNyZXQi", {"type": "json", "subject_token_field_name": "b"}, "Unable to parse subject_token"),
        (b'{"b": ["eyJzZWNyZXQi"]}', {"type": "json", "subject_token_field_name": "b"}, "Unable to parse"),
        (b"{}", {"type": "json"}, "lacks subject_token_field_name"),
        (b"{}", {"type": "xml"}, "neither text nor json"),
        (b"{}", "json", "neither text nor json"),
    ],
)
async def test_a_missing_subject_token_file_is_named(
    google: FakeGoogle,
    house: House,
    mint: GoogleMint,
    federated_info: dict[str, Any],
    told: Callable[[Any], str],
    content: bytes | None,
    kind: object,
    what: str,
) -> None:
    path = house.folder / "pipe"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    named = house.file({**federated_info, "credential_source": {"file": str(path), "format": kind}})
    with pytest.raises(CredentialsInvalid, match=what) as caught:
        await mint(OTHER)
    assert str(named) in str(caught.value)
    assert "eyJzZWNyZXQi" not in told(caught.value)
    assert google.calls == []


@pytest.mark.asyncio
async def test_a_subject_token_comes_from_a_field_of_a_json_file(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    path = house.folder / "subject.json"
    path.write_text('{"token": "subject-token-of-the-pod"}')
    kind = {"type": "json", "subject_token_field_name": "token"}
    house.file({**federated_info, "credential_source": {"file": str(path), "format": kind}})
    may_impersonate(google, ("principal://pool/subject/pod", TARGET))
    assert (await mint(OTHER)).principal == TARGET


@pytest.mark.asyncio
async def test_a_subject_token_comes_from_a_url(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    url = f"http://127.0.0.1:{google.metadata_port}/subject"
    kind = {"type": "json", "subject_token_field_name": "token"}
    house.file({**federated_info, "credential_source": {"url": url, "format": kind}})
    may_impersonate(google, ("principal://pool/subject/pod", TARGET))
    google.break_next("/subject", answers(200, '{"token": "subject-token-of-the-pod"}'))
    assert (await mint(OTHER)).principal == TARGET
    google.revoke_access_tokens()
    google.break_next("/subject", answers(404, "eyJzZWNyZXQi"))
    with pytest.raises(
        MintRefused, match=r"127\.0\.0\.1 \(credential_source of .*\) answered 404 \(\[not shown\]\): is /subject"
    ):
        await mint(OTHER)
    google.break_next("/subject", answers(200, '{"other": "eyJzZWNyZXQi"}'))
    with pytest.raises(CredentialsInvalid, match="Unable to parse subject_token") as caught:
        await mint(OTHER)
    assert "eyJzZWNyZXQi" not in str(caught.value)


def executable_source(path: Path, subject: str) -> dict[str, Any]:
    path.write_text(
        "#!/bin/sh\n"
        'echo \'{"version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:jwt", '
        f'"id_token": "{subject}", "expiration_time": 4102444800}}\'\n'
    )
    path.chmod(0o755)
    return {"executable": {"command": str(path), "timeout_millis": 60_000}}


@pytest.mark.asyncio
async def test_a_subject_token_comes_from_an_executable_that_is_allowed(
    google: FakeGoogle,
    house: House,
    mint: GoogleMint,
    federated_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = executable_source(house.folder / "subject.sh", "subject-token-of-the-pod")
    house.file({**federated_info, "credential_source": source})
    may_impersonate(google, ("principal://pool/subject/pod", TARGET))
    with pytest.raises(CredentialsInvalid, match="Executables need to be explicitly allowed"):
        await mint(OTHER)
    monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
    assert (await mint(OTHER)).principal == TARGET


@pytest.mark.asyncio
async def test_the_output_of_a_failed_executable_is_not_in_the_sentence(
    house: House,
    mint: GoogleMint,
    federated_info: dict[str, Any],
    told: Callable[[BaseException], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
    path = house.folder / "fails.sh"
    path.write_text("#!/bin/sh\necho eyJzZWNyZXQi\nexit 3\n")
    path.chmod(0o755)
    house.file({**federated_info, "credential_source": {"executable": {"command": str(path)}}})
    with pytest.raises(CredentialsInvalid, match=r"the executable in .* ended with exit code 3") as caught:
        await mint(OTHER)
    assert "eyJzZWNyZXQi" not in told(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("universe", ["", None])
async def test_an_empty_universe_is_googles_default(
    google: FakeGoogle,
    house: House,
    mint: GoogleMint,
    key_info: dict[str, Any],
    user_info: dict[str, Any],
    federated_info: dict[str, Any],
    universe: str | None,
) -> None:
    house.file({**key_info, "universe_domain": universe})
    assert (await mint(KEY)).principal == KEY_ACCOUNT
    may_impersonate(
        google, (KEY_ACCOUNT, TARGET), ("user@example.com", TARGET), ("principal://pool/subject/pod", TARGET)
    )
    (house.folder / "subject").write_text("subject-token-of-the-pod")
    federated = {**federated_info, "credential_source": {"file": str(house.folder / "subject")}}
    inner = {
        "type": "impersonated_service_account",
        "service_account_impersonation_url": (
            f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken"
        ),
        "source_credentials": {**user_info, "universe_domain": universe},
    }
    for number, info in enumerate((key_info, user_info, federated)):
        house.file({**info, "universe_domain": universe}, f"{number}.json")
        assert (await mint(OTHER)).principal == TARGET
    house.file({**inner, "universe_domain": universe}, "inner.json")
    assert (await mint(KEY)).principal == TARGET


def aws_info(federated_info: dict[str, Any], port: int) -> dict[str, Any]:
    imds = f"http://127.0.0.1:{port}/latest"
    source = {
        "environment_id": "aws1",
        "region_url": f"{imds}/meta-data/placement/availability-zone",
        "url": f"{imds}/meta-data/iam/security-credentials",
        "imdsv2_session_token_url": f"{imds}/api/token",
        "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity",
    }
    return {
        **federated_info,
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
        "credential_source": source,
    }


@pytest.mark.asyncio
async def test_aws_without_a_metadata_server_names_the_file_and_the_variables(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path = house.file(aws_info(federated_info, port))
    with pytest.raises(CredentialsInvalid) as caught:
        await mint(OTHER)
    text = str(caught.value)
    for words in (
        f"{path} takes the identity of this machine from AWS' metadata server (EC2), which gave none",
        "127.0.0.1 could not be asked",
        "Fargate, EKS",
        "set AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ):
        assert words in text


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_broken_aws_metadata_server_is_named_and_transient(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any], status: int
) -> None:
    path = house.file(aws_info(federated_info, google.metadata_port))
    google.break_next("/api/token", answers(status, "try later"))
    with pytest.raises(TokenUnavailable, match=rf"{path} takes .* AWS' .*answered {status} \(try later\)"):
        await mint(OTHER)


@pytest.mark.asyncio
async def test_a_url_that_cannot_be_reached_is_named_with_its_file(
    google: FakeGoogle, house: House, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path = house.file({**federated_info, "credential_source": {"url": f"http://127.0.0.1:{port}/token"}})
    with pytest.raises(TokenUnavailable, match=rf"{path} takes its subject token from a URL .*could not be asked"):
        await mint(OTHER)


@pytest.mark.asyncio
async def test_aws_credentials_are_signed_and_exchanged(
    google: FakeGoogle, house: House, mint: GoogleMint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret-access-key")
    house.file(
        {
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/aws",
            "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": {
                "environment_id": "aws1",
                "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity",
            },
        }
    )
    with pytest.raises(CredentialsRejected):
        await mint(OTHER)  # signed, and then refused by a pool that does not know it
    assert google.calls == [("sts.googleapis.com", "/v1/token")]


@pytest.mark.asyncio
async def test_workforce_users_are_a_source_for_impersonation(
    google: FakeGoogle, house: House, mint: GoogleMint
) -> None:
    google.users["workforce-refresh-token"] = "worker@example.com"
    may_impersonate(google, ("worker@example.com", TARGET))
    house.file(
        {
            "type": "external_account_authorized_user",
            "audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/q",
            "client_id": "c",
            "client_secret": "s",
            "refresh_token": "workforce-refresh-token",
            "token_url": "https://sts.googleapis.com/v1/token",
        }
    )
    assert (await mint(OTHER)).principal == TARGET
    google.users.clear()
    google.revoke_access_tokens()
    with pytest.raises(CredentialsRejected, match="gcloud auth application-default login"):
        await mint(OTHER)


@pytest.mark.asyncio
async def test_a_federation_file_that_google_auth_cannot_load_is_invalid(
    house: House, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    path = house.file({**federated_info, "credential_source": {"environment_id": "aws9"}})
    with pytest.raises(CredentialsInvalid, match=rf"{path} \(external_account\) cannot be used"):
        await mint(OTHER)


# The lent HTTP


def test_transport_options_are_not_dropped_silently(user_info: dict[str, Any]) -> None:
    def unused(method: str, url: str, headers: object, body: bytes | None = None) -> Reply:
        raise AssertionError

    file = AuthorizedUser("user.json", b"digest", user_info)
    credentials = file.load(None)
    credentials.refresh = lambda request: request("https://x", cert=("a", "b"))
    with pytest.raises(CredentialsInvalid, match="TransportError"):
        google_auth.access_token(file, credentials, None, time.time, unused)

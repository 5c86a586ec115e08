"""Identity federation, through google-auth: subject tokens of files, URLs, executables and AWS."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import (
    CredentialsInvalid,
    CredentialsRejected,
    ImpersonationDenied,
    MintRefused,
    TokenUnavailable,
)
from proxy.tokens.google import GoogleMint
from tests.unit.tokens.conftest import KEY_ACCOUNT, Home
from tests.unit.tokens.fake_google import FakeGoogle, answers
from tests.unit.tokens.values import IMPERSONATED, KEY, TARGET


@pytest.fixture
def federated_info(home: Home, google: FakeGoogle) -> dict[str, Any]:
    """Workload identity federation with a subject token in a file."""
    (home.folder / "subject").write_text("subject-token-of-the-pod")
    google.subject_tokens["subject-token-of-the-pod"] = "principal://pool/subject/pod"
    return {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": str(home.folder / "subject")},
    }


@pytest.mark.asyncio
async def test_federation_is_a_source_for_impersonation(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    home.file(federated_info)
    google.allow_impersonation(("principal://pool/subject/pod", TARGET))
    assert (await mint(IMPERSONATED)).principal == TARGET
    assert google.called("/v1/token") == 1


@pytest.mark.asyncio
async def test_federation_goes_through_the_account_its_file_names(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    middle = "middle@project.iam.gserviceaccount.com"
    url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{middle}:generateAccessToken"
    home.file({**federated_info, "service_account_impersonation_url": url})
    google.allow_impersonation((middle, TARGET))
    google.accounts.add(middle)
    with pytest.raises(ImpersonationDenied, match=r"roles/iam\.workloadIdentityUser"):
        await mint(IMPERSONATED)
    google.allow_impersonation(("principal://pool/subject/pod", middle))
    assert (await mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
async def test_a_subject_token_that_is_refused_names_the_file(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any], told: Callable[[Any], str]
) -> None:
    path = home.file(federated_info)
    google.subject_tokens.clear()
    with pytest.raises(CredentialsRejected, match=f"identity provider in {path}") as caught:
        await mint(IMPERSONATED)
    assert "subject-token-of-the-pod" not in told(caught.value)


@pytest.mark.asyncio
async def test_a_subject_token_file_that_is_missing_is_named(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    home.file({**federated_info, "credential_source": {"file": "/nowhere/subject"}})
    with pytest.raises(CredentialsInvalid, match="File '/nowhere/subject' was not found"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("content", "kind", "what"),
    [
        (None, None, r"\('/.*/pipe'\) cannot be used: it is a named pipe"),
        (b"\xff", None, "is not text"),
        (b"", None, "has no subject token"),
        (b"  \n", None, "has no subject token"),
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
async def test_an_unusable_subject_token_file_is_named_and_not_quoted(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    federated_info: dict[str, Any],
    told: Callable[[Any], str],
    content: bytes | None,
    kind: object,
    what: str,
) -> None:
    path = home.folder / "pipe"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    named = home.file({**federated_info, "credential_source": {"file": str(path), "format": kind}})
    with pytest.raises(CredentialsInvalid, match=what) as caught:
        await mint(IMPERSONATED)
    assert str(named) in str(caught.value)
    assert "eyJzZWNyZXQi" not in told(caught.value)
    assert google.calls == []


@pytest.mark.asyncio
async def test_blanks_around_a_subject_token_are_not_sent(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    """An editor and `echo` end a file with a newline; Google's library for Go removes it, too."""
    (home.folder / "subject").write_text(" subject-token-of-the-pod\r\n\n")
    home.file(federated_info)
    google.allow_impersonation(("principal://pool/subject/pod", TARGET))
    assert (await mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
async def test_a_subject_token_comes_from_a_field_of_a_json_file(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    path = home.folder / "subject.json"
    path.write_text('{"token": "subject-token-of-the-pod"}')
    kind = {"type": "json", "subject_token_field_name": "token"}
    home.file({**federated_info, "credential_source": {"file": str(path), "format": kind}})
    google.allow_impersonation(("principal://pool/subject/pod", TARGET))
    assert (await mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
async def test_a_subject_token_comes_from_a_url(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    url = f"http://127.0.0.1:{google.metadata_port}/subject"
    kind = {"type": "json", "subject_token_field_name": "token"}
    home.file({**federated_info, "credential_source": {"url": url, "format": kind}})
    google.allow_impersonation(("principal://pool/subject/pod", TARGET))
    google.break_next("/subject", answers(200, '{"token": "subject-token-of-the-pod"}'))
    assert (await mint(IMPERSONATED)).principal == TARGET
    google.revoke_access_tokens()
    google.break_next("/subject", answers(404, "eyJzZWNyZXQi"))
    with pytest.raises(
        MintRefused, match=r"127\.0\.0\.1 \(credential_source of .*\) answered 404 \(\[not shown\]\): is /subject"
    ):
        await mint(IMPERSONATED)
    google.break_next("/subject", answers(200, '{"other": "eyJzZWNyZXQi"}'))
    with pytest.raises(CredentialsInvalid, match="Unable to parse subject_token") as caught:
        await mint(IMPERSONATED)
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
    home: Home,
    mint: GoogleMint,
    federated_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = executable_source(home.folder / "subject.sh", "subject-token-of-the-pod")
    home.file({**federated_info, "credential_source": source})
    google.allow_impersonation(("principal://pool/subject/pod", TARGET))
    with pytest.raises(CredentialsInvalid, match="Executables need to be explicitly allowed"):
        await mint(IMPERSONATED)
    monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
    assert (await mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
async def test_the_output_of_a_failed_executable_is_not_in_the_sentence(
    home: Home,
    mint: GoogleMint,
    federated_info: dict[str, Any],
    told: Callable[[BaseException], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
    path = home.folder / "fails.sh"
    path.write_text("#!/bin/sh\necho eyJzZWNyZXQi\nexit 3\n")
    path.chmod(0o755)
    home.file({**federated_info, "credential_source": {"executable": {"command": str(path)}}})
    with pytest.raises(CredentialsInvalid, match=r"the executable in .* ended with exit code 3") as caught:
        await mint(IMPERSONATED)
    assert "eyJzZWNyZXQi" not in told(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("universe", ["", None])
async def test_an_empty_universe_is_googles_default(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    key_info: dict[str, Any],
    user_info: dict[str, Any],
    federated_info: dict[str, Any],
    universe: str | None,
) -> None:
    home.file({**key_info, "universe_domain": universe})
    assert (await mint(KEY)).principal == KEY_ACCOUNT
    google.allow_impersonation(
        (KEY_ACCOUNT, TARGET), ("user@example.com", TARGET), ("principal://pool/subject/pod", TARGET)
    )
    (home.folder / "subject").write_text("subject-token-of-the-pod")
    federated = {**federated_info, "credential_source": {"file": str(home.folder / "subject")}}
    inner = {
        "type": "impersonated_service_account",
        "service_account_impersonation_url": (
            f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken"
        ),
        "source_credentials": {**user_info, "universe_domain": universe},
    }
    for number, info in enumerate((key_info, user_info, federated)):
        home.file({**info, "universe_domain": universe}, f"{number}.json")
        assert (await mint(IMPERSONATED)).principal == TARGET
    home.file({**inner, "universe_domain": universe}, "inner.json")
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
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path = home.file(aws_info(federated_info, port))
    with pytest.raises(CredentialsInvalid) as caught:
        await mint(IMPERSONATED)
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
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any], status: int
) -> None:
    path = home.file(aws_info(federated_info, google.metadata_port))
    google.break_next("/api/token", answers(status, "try later"))
    with pytest.raises(TokenUnavailable, match=rf"{path} takes .* AWS' .*answered {status} \(try later\)"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
async def test_a_url_that_cannot_be_reached_is_named_with_its_file(
    google: FakeGoogle, home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path = home.file({**federated_info, "credential_source": {"url": f"http://127.0.0.1:{port}/token"}})
    with pytest.raises(TokenUnavailable, match=rf"{path} takes its subject token from a URL .*could not be asked"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
async def test_aws_credentials_are_signed_and_exchanged(
    google: FakeGoogle, home: Home, mint: GoogleMint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret-access-key")
    home.file(
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
        await mint(IMPERSONATED)  # signed, and then refused by a pool that does not know it
    assert google.calls == [("sts.googleapis.com", "/v1/token")]


@pytest.mark.asyncio
async def test_workforce_users_are_a_source_for_impersonation(google: FakeGoogle, home: Home, mint: GoogleMint) -> None:
    google.users["workforce-refresh-token"] = "worker@example.com"
    google.allow_impersonation(("worker@example.com", TARGET))
    home.file(
        {
            "type": "external_account_authorized_user",
            "audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/q",
            "client_id": "c",
            "client_secret": "s",
            "refresh_token": "workforce-refresh-token",
            "token_url": "https://sts.googleapis.com/v1/token",
        }
    )
    assert (await mint(IMPERSONATED)).principal == TARGET
    google.users.clear()
    google.revoke_access_tokens()
    with pytest.raises(CredentialsRejected, match="gcloud auth application-default login"):
        await mint(IMPERSONATED)


@pytest.mark.asyncio
async def test_a_federation_file_that_google_auth_cannot_load_is_invalid(
    home: Home, mint: GoogleMint, federated_info: dict[str, Any]
) -> None:
    path = home.file({**federated_info, "credential_source": {"environment_id": "aws9"}})
    with pytest.raises(CredentialsInvalid, match=rf"{path} \(external_account\) cannot be used"):
        await mint(IMPERSONATED)

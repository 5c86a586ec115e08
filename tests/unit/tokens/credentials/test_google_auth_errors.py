from __future__ import annotations

import json
from typing import Any

import pytest

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
from proxy.tokens.credentials.file import CredentialFile
from proxy.tokens.credentials.google_auth_errors import LastCall, failure_of, load_failure
from proxy.tokens.credentials.kinds import KINDS

NOW = 1_800_000_000.0
SECRET = "eyJzZWNyZXQi"
STS = "https://sts.googleapis.com/v1/token"
IMDS = "http://169.254.169.254/latest"
AWS = {"environment_id": "aws1", "url": f"{IMDS}/meta-data/iam", "imdsv2_session_token_url": f"{IMDS}/api/token"}


def file(kind: str = "external_account", **info: Any) -> CredentialFile:
    return KINDS[kind]("file.json", b"digest", {"credential_source": {"file": "/var/run/token"}, **info})


def told(
    of: CredentialFile,
    exc: Exception | None = None,
    *,
    url: str = STS,
    status: int = 0,
    body: object = None,
    date: str = "",
) -> Failure:
    reply = Reply(status, {"date": date}, json.dumps(body).encode()) if status else None
    return failure_of(of, LastCall(url, reply), exc or RuntimeError(SECRET), NOW)


def test_a_failure_below_the_error_of_google_auth_is_the_one_reported() -> None:
    exc = RuntimeError(SECRET)
    exc.__cause__ = TokenUnavailable("down")
    assert told(file(), exc) is exc.__cause__


# What goes wrong on this machine


@pytest.mark.parametrize(
    ("exc", "what"),
    [
        (ValueError(f"Unable to retrieve AWS region: {SECRET}"), "cannot be used (ValueError)"),
        (KeyError(SECRET), "cannot be used (KeyError)"),
    ],
)
def test_a_failure_without_a_call_is_described(exc: Exception, what: str) -> None:
    failure = told(file(credential_source=AWS), exc)
    assert type(failure) is CredentialsInvalid
    assert what in str(failure)
    assert "file.json" in str(failure)
    assert SECRET not in str(failure)


@pytest.mark.parametrize("what", ["AWS region", "the AWS metadata server security credentials endpoint"])
def test_without_a_metadata_server_of_aws_the_variables_are_named(what: str) -> None:
    failure = told(file(credential_source={"environment_id": "aws1"}), ValueError(f"Unable to determine {what}"))
    assert type(failure) is CredentialsInvalid
    assert f"(external_account) cannot be used: Unable to determine {what} without a metadata" in str(failure)
    assert "set AWS_REGION, AWS_ACCESS_KEY_ID" in str(failure)


def test_a_load_failure_does_not_quote_the_content() -> None:
    assert "is not an RSA key in PEM form" in str(load_failure(file("service_account"), ValueError(SECRET)))
    assert SECRET not in str(load_failure(file(), ValueError(SECRET)))


# Where a subject token comes from


@pytest.mark.parametrize(
    ("source", "url", "status", "leaf", "what"),
    [
        ({**AWS, "imdsv2_session_token_url": None}, AWS["url"], 401, MintRefused, "169.254.169.254 (credential_source"),
        ({"environment_id": "aws1", "url": AWS["url"]}, AWS["url"], 401, CredentialsInvalid, "--enable-imdsv2"),
        (AWS, f"{AWS['url']}/role", 404, MintRefused, "attach an IAM role to this machine"),
        (AWS, f"{IMDS}/api/token", 403, MintRefused, "is /latest/meta-data/iam right"),
        ({"url": "http://a/b?c=d"}, "http://a/b?c=d", 400, MintRefused, "a (credential_source of file.json) answered"),
        ({"url": "http://a"}, "http://a", 404, MintRefused, "is its URL right"),
        ({"url": "http://a"}, "http://a", 302, TokenUnavailable, "answered 302"),
    ],
)
def test_a_refusal_of_the_source_differs_from_one_of_google(
    source: dict[str, Any], url: str, status: int, leaf: type[Failure], what: str
) -> None:
    failure = told(file(credential_source=source), url=url, status=status, body=[SECRET])
    assert type(failure) is leaf
    assert what in str(failure)
    assert SECRET not in str(failure)


# What Google says


def test_a_success_without_a_token_is_malformed_unless_another_cause_is_known() -> None:
    assert type(told(file(), status=200)) is TokenMalformed
    failure = told(file(), ValueError("Missing subject_token in the credential_source file"), status=200)
    assert type(failure) is CredentialsInvalid
    assert "Missing subject_token" in str(failure)


LATE, EARLY = "Fri, 15 Jan 2027 09:00:00 GMT", "Fri, 15 Jan 2027 07:00:00 GMT"


@pytest.mark.parametrize(
    ("kind", "date", "what"),
    [
        ("service_account", "", "it was deleted or disabled; create a new key"),
        ("service_account", LATE, "the clock of this machine is 3600 s behind Google's; set the clock of this machine"),
        (
            "service_account",
            EARLY,
            "the clock of this machine is 3600 s ahead of Google's; set the clock of this machine",
        ),
        (
            "external_account",
            "",
            "does not accept the subject token of the identity provider in file.json (invalid_grant: no); see that the",
        ),
        (
            "external_account",
            LATE,
            "the clock of this machine is 3600 s behind Google's; set the clock of this machine",
        ),
        ("authorized_user", LATE, "run `gcloud auth application-default login`"),
        ("external_account_authorized_user", "", "run `gcloud auth application-default login`"),
    ],
)
def test_a_rejection_says_what_to_do(kind: str, date: str, what: str) -> None:
    body = {"error": "invalid_grant", "error_description": "no"}
    failure = told(file(kind), status=400, body=body, date=date)
    assert type(failure) is CredentialsRejected
    assert what in str(failure)
    # Without one, log and status page show that of the kind of failure, which is for keys and users.
    assert ("set the clock" in failure.remedy) == ("clock" in what)
    assert ("providers describe" in failure.remedy) == (kind == "external_account" and not date)


@pytest.mark.parametrize("error", ["internal_failure", "server_error", "temporarily_unavailable"])
def test_an_error_of_google_that_passes_is_transient_whatever_its_status(error: str) -> None:
    failure = told(file(), status=400, body={"error": error, "error_description": "try again"})
    assert type(failure) is TokenUnavailable
    assert failure.problem == f"sts.googleapis.com answered 400 ({error}: try again)"


@pytest.mark.parametrize(
    ("description", "email", "what"),
    [
        ("account disabled", "a@b.iam.gserviceaccount.com", "service-accounts enable a@b.iam.gserviceaccount.com"),
        (
            "account disabled",
            None,
            "account is disabled; enable it: gcloud iam service-accounts enable ACCOUNT",
        ),
        (
            "account not found",
            "a@b.iam.gserviceaccount.com",
            "its service account was deleted; create a new key, of",
        ),
    ],
)
def test_a_key_of_an_account_that_cannot_be_used_says_so(description: str, email: str | None, what: str) -> None:
    body = {"error": "invalid_grant", "error_description": f"Invalid grant: {description}"}
    failure = told(file("service_account", client_email=email), status=400, body=body)
    assert type(failure) is CredentialsRejected
    assert what in str(failure)
    assert "it was deleted or disabled" not in str(failure)


def test_a_provider_that_does_not_exist_is_named() -> None:
    failure = told(file(audience="//iam.googleapis.com/p"), status=400, body={"error": "invalid_target"})
    assert type(failure) is MintRefused
    assert "provider //iam.googleapis.com/p that file.json names does not exist" in str(failure)


def test_federation_that_may_not_become_its_account_names_the_role() -> None:
    failure = told(file(), url="https://iamcredentials.googleapis.com/x:generateAccessToken", status=403)
    assert type(failure) is ImpersonationDenied
    assert "roles/iam.workloadIdentityUser" in str(failure)
    assert type(told(file(), status=403)) is MintRefused


def test_federation_whose_access_token_iam_does_not_accept_is_rejected() -> None:
    failure = told(file(), url="https://iamcredentials.googleapis.com/x:generateAccessToken", status=401)
    assert type(failure) is CredentialsRejected
    assert "IAM does not accept the access token of the federated identity of file.json" in str(failure)


@pytest.mark.parametrize(
    ("status", "message", "reason", "what"),
    [
        (403, "It is disabled.", "SERVICE_DISABLED", "gcloud services enable iamcredentials.googleapis.com"),
        (403, "No.", "USER_PROJECT_DENIED", "the federated identity of file.json may not use the quota project"),
        (403, "Account a@b.cd is disabled.", "", "the service account a@b.cd is disabled"),
        (400, "Account a@b.cd is disabled.", "", "the service account a@b.cd is disabled"),
    ],
)
def test_federation_whose_account_or_project_cannot_be_used_is_not_blamed_on_the_role(
    status: int, message: str, reason: str, what: str
) -> None:
    url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@b.cd:generateAccessToken"
    body = {"error": {"message": message, "details": [{"reason": reason}]}}
    failure = told(file(service_account_impersonation_url=url), url=url, status=status, body=body)
    assert type(failure) is MintRefused
    assert what in str(failure)
    assert "roles/iam." not in str(failure)

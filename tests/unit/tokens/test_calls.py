from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from proxy.errors import CredentialsInvalid, Failure, MintRefused, TokenMalformed, TokenUnavailable
from proxy.quoting import secrets_of_request
from proxy.tokens.calls import (
    Reply,
    bearer,
    clock_remark,
    date_of,
    error_message,
    error_reasons,
    failure_of_reply,
    host_of,
    read_object,
)

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"


def reply(status: int, document: object) -> Reply:
    return Reply(status, {}, document if isinstance(document, bytes) else json.dumps(document).encode())


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"error": {"message": "Permission denied"}}, "Permission denied"),
        ({"error": "invalid_grant", "error_description": "revoked"}, "invalid_grant: revoked"),
        ({"error": "invalid_grant"}, "invalid_grant"),
        ({"error": {"message": "two\r\nlines\tand\x1b[31m colour"}}, "two lines and [31m colour"),
        ({"error": {"message": f"what is {JWT}?"}}, "what is [not shown]?"),
        ({"error": {"message": "ya29.c.b0Aaekm1K0"}}, "[not shown]"),
        ({"message": "of AWS"}, "of AWS"),
        ({"Error": {"Code": "AccessDenied", "Message": "no"}}, "no"),
        ({"error": {"message": ["x"]}}, '{"error": {"message": ["x"]}}'),
        ({"error": 5}, '{"error": 5}'),
        ({"token": JWT}, '{"token": [not shown]}'),
        ({"token": "opaque"}, '{"token": [not shown]}'),
        ([JWT], '["[not shown]"]'),
        (b"plain\ntext\n", "plain text"),
        (
            b"<!doctype html><title>403</title><style>p{}</style><b>403.</b> <ins>That&#39;s an error.",
            "403. That's an error.",
        ),
        (b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>", "AccessDenied no"),
        (b"<html>" + JWT.encode(), "[not shown]"),
        (b"\xff\xfe\x00\x01", ""),
        (b"\x89PNG\r\n\xff\xff\xff", ""),
        (b"[" * 100_000, "[" * 499 + "…"),
        (b"", ""),
        (b"\n\n", ""),
    ],
)
def test_the_message_of_an_error_is_on_one_line(document: Any, said: str) -> None:
    assert error_message(reply(403, document)) == said


@pytest.mark.parametrize("status", [200, 201, 204, 206, 299])
def test_a_success_has_no_error_message(status: int) -> None:
    assert error_message(reply(status, {"error": {"message": "secret"}})) == ""


SIGNED = json.dumps(
    {
        "url": "https://sts.eu-west-1.amazonaws.com",
        "headers": [
            {"key": "Authorization", "value": "AWS4-HMAC-SHA256 Credential=ASIAX/x, Signature=0a1b2c"},
            {"key": "x-amz-security-token", "value": "session/token+of=aws"},
            {"key": "host", "value": "sts.eu-west-1.amazonaws.com"},
        ],
    }
)


@pytest.mark.parametrize(
    ("headers", "form", "repeated"),
    [
        ({"Authorization": "Bearer opaque token"}, {}, "opaque token"),
        ({"Authorization": "Basic opaque"}, {}, "opaque"),
        ({"X-aws-ec2-metadata-token": "imds session"}, {}, "imds session"),
        ({}, {"assertion": "key a b/c"}, "key a b/c"),
        ({}, {"assertion": "key a b/c"}, "key+a+b%2Fc"),
        ({}, {"assertion": "key a b/c"}, "key%20a%20b/c"),
        ({}, {"subject_token": 'a"b\ncd'}, 'a\\"b\\ncd'),
        ({}, {"refresh_token": "refresh"}, "refresh"),
        ({}, {"client_secret": "secret"}, "secret"),
        ({}, {"subject_token": SIGNED}, "session/token+of=aws"),
        ({}, {"subject_token": quote(SIGNED)}, "session/token+of=aws"),
        ({}, {"subject_token": quote(SIGNED)}, quote(SIGNED)),
    ],
)
def test_secrets_of_the_request_are_not_in_the_error_message(
    headers: dict[str, str], form: dict[str, str], repeated: str
) -> None:
    secrets = secrets_of_request(headers, urlencode(form).encode())
    for body in (f"what is {repeated}?", json.dumps({"error": "invalid", "error_description": f"what is {repeated}?"})):
        said = error_message(Reply(400, {}, body.encode(), secrets))
        assert said.removeprefix("invalid: ") == "what is [not shown]?"


def test_a_quoted_error_message_is_bounded() -> None:
    assert len(error_message(reply(400, {"error": {"message": "x" * 10_000}}))) == 500


def test_the_reason_is_that_of_error_info_or_the_oauth_code() -> None:
    details = [{"reason": "SERVICE_DISABLED"}, {"reason": 5}, "no object", {}]
    assert error_reasons(reply(403, {"error": {"details": details}})) == {"SERVICE_DISABLED"}
    assert error_reasons(reply(400, {"error": "invalid_grant"})) == {"invalid_grant"}
    assert error_reasons(reply(400, {"error": {"details": None}})) == set()
    assert error_reasons(reply(400, {"error": {"details": 7}})) == set()
    assert error_reasons(reply(400, [])) == set()


@pytest.mark.parametrize(
    ("status", "leaf"),
    [(400, MintRefused), (404, MintRefused), (408, TokenUnavailable), (429, TokenUnavailable)]
    + [(status, TokenUnavailable) for status in (302, 500, 502, 503, 504)],
)
def test_transient_statuses_are_unavailable_and_other_errors_refused(status: int, leaf: type[Failure]) -> None:
    failure = failure_of_reply("IAM", reply(status, {"error": {"message": "why"}}), "do this")
    assert type(failure) is leaf
    assert str(failure).startswith(f"IAM answered {status} (why)")
    assert ("do this" in str(failure)) == (leaf is MintRefused)


def test_a_reply_and_a_bearer_have_no_secret_in_their_repr() -> None:
    assert JWT not in repr(Reply(200, {"x": JWT}, JWT.encode()))
    assert JWT not in repr(bearer(JWT, 1.0))


def test_a_bearer_carries_the_quota_project_if_there_is_one() -> None:
    assert bearer("ya29.x", 1.0).headers == {"authorization": "Bearer ya29.x"}
    assert bearer("ya29.x", 1.0, "p").headers["x-goog-user-project"] == "p"


@pytest.mark.parametrize("project", ["a b", "p\r\nx: y", "é b", JWT, "P" * 101])
def test_an_invalid_quota_project_is_reported_and_not_quoted(project: str) -> None:
    with pytest.raises(CredentialsInvalid, match="GOOGLE_CLOUD_QUOTA_PROJECT") as caught:
        bearer("ya29.x", 1.0, project)
    assert project not in str(caught.value)
    for good in ("my-project", "example.com:my-project", "123456789012"):
        bearer("ya29.x", 1.0, good)


@pytest.mark.parametrize("token", [None, "", 5, "a b", "a\r\nx: y", "é"])
def test_an_access_token_must_be_a_valid_authorization_value(token: object) -> None:
    with pytest.raises(TokenMalformed):
        bearer(token, 1.0)


def test_a_body_that_is_no_object_counts_as_an_empty_one() -> None:
    assert read_object(b'{"a": 1}') == {"a": 1}
    assert read_object(b"[]") == {}


def test_a_url_without_a_valid_host_is_called_the_endpoint() -> None:
    assert host_of("https://sts.googleapis.com/v1/token") == "sts.googleapis.com"
    for url in ("/v1", "https://[::1", f"https://{JWT}/token"):
        assert host_of(url) == "the endpoint"


@pytest.mark.parametrize(
    ("date", "remark"),
    [
        ("Fri, 15 Jan 2027 08:00:00 GMT", ""),
        ("Fri, 15 Jan 2027 08:00:30 GMT", ""),
        ("Fri, 15 Jan 2027 08:00:31 GMT", "the clock of this machine is 31 s behind Google's"),
        ("Fri, 15 Jan 2027 07:00:00 GMT", "the clock of this machine is 3600 s ahead of Google's"),
        ("junk", ""),
        ("", ""),
    ],
)
def test_the_date_of_the_response_shows_a_wrong_clock(date: str, remark: str) -> None:
    assert clock_remark(Reply(400, {"date": date}, b""), 1_800_000_000.0) == remark


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"date": "Thu, 01 Jan 1970 00:00:10 GMT"}, 10.0), ({"date": "yesterday"}, None), ({}, None)],
)
def test_a_reply_has_the_time_of_its_date_if_there_is_one(headers: dict[str, str], seconds: float | None) -> None:
    assert date_of(Reply(200, headers, b"")) == seconds

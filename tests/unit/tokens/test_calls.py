from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import Failure, MintRefused, TokenMalformed, TokenUnavailable
from proxy.tokens.calls import Reply, bearer, clock_remark, complaint, host_of, read_object, reasons, refusal

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
        ({"error": {"message": ["x"]}}, ""),
        ({"error": 5}, ""),
        ({"token": JWT}, ""),
        ([JWT], ""),
        (b"<html>" + JWT.encode(), ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
        (b"", ""),
    ],
)
def test_only_the_message_of_a_json_error_is_told(document: Any, said: str) -> None:
    assert complaint(reply(403, document)) == said


def test_nothing_is_told_of_an_answer_with_status_200() -> None:
    assert complaint(reply(200, {"error": {"message": "secret"}})) == ""


def test_a_complaint_is_bounded() -> None:
    assert len(complaint(reply(400, {"error": {"message": "x" * 10_000}}))) == 300


def test_reasons_are_those_of_error_info_or_the_oauth_code() -> None:
    details = [{"reason": "SERVICE_DISABLED"}, {"reason": 5}, "no object", {}]
    assert reasons(reply(403, {"error": {"details": details}})) == {"SERVICE_DISABLED"}
    assert reasons(reply(400, {"error": "invalid_grant"})) == {"invalid_grant"}
    assert reasons(reply(400, {"error": {"details": None}})) == set()
    assert reasons(reply(400, {"error": {"details": 7}})) == set()
    assert reasons(reply(400, [])) == set()


@pytest.mark.parametrize(
    ("status", "leaf"),
    [(400, MintRefused), (404, MintRefused), (408, TokenUnavailable), (429, TokenUnavailable)]
    + [(status, TokenUnavailable) for status in (302, 500, 502, 503, 504)],
)
def test_what_passes_by_itself_is_unavailable_and_the_rest_refused(status: int, leaf: type[Failure]) -> None:
    failure = refusal("IAM", reply(status, {"error": {"message": "why"}}), "do this")
    assert type(failure) is leaf
    assert str(failure).startswith(f"IAM answered {status} (why)")
    assert ("do this" in str(failure)) == (leaf is MintRefused)


def test_a_reply_and_a_bearer_have_no_secret_in_their_repr() -> None:
    assert JWT not in repr(Reply(200, {"x": JWT}, JWT.encode()))
    assert JWT not in repr(bearer(JWT, 1.0))


def test_a_bearer_carries_the_quota_project_if_there_is_one() -> None:
    assert bearer("ya29.x", 1.0).headers == {"authorization": "Bearer ya29.x"}
    assert bearer("ya29.x", 1.0, "p").headers["x-goog-user-project"] == "p"


@pytest.mark.parametrize("token", [None, "", 5, "a b", "a\r\nx: y", "é"])
def test_what_cannot_stand_in_authorization_is_no_access_token(token: object) -> None:
    with pytest.raises(TokenMalformed):
        bearer(token, 1.0)


def test_a_body_that_is_no_object_reads_as_an_empty_one() -> None:
    assert read_object(b'{"a": 1}') == {"a": 1}
    assert read_object(b"[]") == {}


def test_a_url_without_a_host_can_still_be_named() -> None:
    assert host_of("https://sts.googleapis.com/v1/token") == "sts.googleapis.com"
    assert host_of("/v1") == "the endpoint"


@pytest.mark.parametrize(
    ("date", "remark"),
    [
        ("Fri, 15 Jan 2027 08:00:00 GMT", ""),
        ("Fri, 15 Jan 2027 08:00:30 GMT", ""),
        ("Fri, 15 Jan 2027 08:00:31 GMT", "the clock of this machine is 31 s behind Google's; set it"),
        ("Fri, 15 Jan 2027 07:00:00 GMT", "the clock of this machine is 3600 s ahead of Google's; set it"),
        ("junk", ""),
        ("", ""),
    ],
)
def test_a_wrong_clock_is_told_by_the_date_of_the_answer(date: str, remark: str) -> None:
    assert clock_remark(Reply(400, {"date": date}, b""), 1_800_000_000.0) == remark

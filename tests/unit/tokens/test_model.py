from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from proxy.errors import TokenMalformed
from proxy.routes import Origin, Route
from proxy.tokens.model import TokenKey, is_account, read_claims, token_from_jwt
from tests.unit.tokens.values import AUDIENCE, KEY, START, encode, jwt_of, token_of


def test_a_token_has_the_field_value_the_expiry_and_the_principal_of_its_jwt() -> None:
    jwt = jwt_of({"exp": 1_800_000_000, "email": "me@example.com", "sub": "1"})
    token = token_from_jwt(KEY, jwt)
    assert token.authorization == b"Bearer " + jwt.encode()
    assert token.expires_at == 1_800_000_000.0
    assert token.principal == "me@example.com"
    assert token.key.audience == AUDIENCE


@pytest.mark.parametrize(
    ("claims", "principal"),
    [
        ({"sub": "1"}, "1"),
        ({}, None),
        ({"email": 5}, None),
        ({"email": "a\x1b[31m@b"}, None),
        ({"email": "\ud800@b"}, None),
    ],
)
def test_the_principal_is_the_subject_without_an_email_and_none_without_both(
    claims: dict[str, Any], principal: str | None
) -> None:
    assert token_from_jwt(KEY, jwt_of({"exp": 1_800_000_000.5, **claims})).principal == principal


@pytest.mark.parametrize(
    ("claims", "dated_at", "kept"),
    [
        ({}, 0.0, True),
        ({"iat": START}, START, True),
        ({"iat": START}, START - 30, True),
        ({"iat": START}, START - 31, False),
        ({"iat": START}, 0.0, False),
        ({"iat": "x"}, 0.0, True),
    ],
)
def test_a_date_before_the_token_was_issued_is_ignored(claims: dict[str, Any], dated_at: float, kept: bool) -> None:
    token = token_from_jwt(KEY, jwt_of({"exp": START + 3600, **claims}), dated_at)
    assert token.dated_at == (dated_at if kept else None)


def test_the_value_of_a_token_is_not_in_its_repr() -> None:
    assert "t7" not in repr(token_of(KEY, 1.0, serial=7))


SECRET = "c2VjcmV0LXNlY3JldA"  # base64url of a word that must not come out

NO_TIMES: list[object] = [None, True, "1800000000", [], {}, -5, 0, 10**400, 1e300]

MALFORMED = [
    "",
    "<html>sign in</html>",
    f"{SECRET}.{SECRET}",
    f"{SECRET}.{SECRET}.{SECRET}.{SECRET}",
    f"{SECRET}..{SECRET}",
    f"{SECRET}.{SECRET}.{SECRET}",
    f"{SECRET}.é.{SECRET}",
    f"{SECRET}.{encode([1])}.{SECRET}",
    f"{SECRET}.{encode(b'[' * 20_000)}.{SECRET}",
    *(jwt_of({"exp": value, "note": SECRET}) for value in NO_TIMES),
    jwt_of({"note": SECRET}),
    jwt_of({"exp": float("inf"), "note": SECRET}),
    jwt_of({"exp": float("nan"), "note": SECRET}),
]


@pytest.mark.parametrize("jwt", MALFORMED)
def test_a_token_must_be_a_jwt_with_an_expiry_and_is_not_quoted_otherwise(jwt: str) -> None:
    with pytest.raises(TokenMalformed) as caught:
        token_from_jwt(KEY, jwt)
    assert SECRET not in str(caught.value)
    assert "<html>" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("extra", ["\r\nx-other: 1", " ", "=", "\n", "\x00"])
def test_a_token_with_a_character_that_a_field_cannot_have_is_refused(extra: str) -> None:
    header, payload, signature = jwt_of({"exp": 1_800_000_000}).split(".")
    with pytest.raises(TokenMalformed):
        token_from_jwt(KEY, f"{header}.{payload}.{signature}{extra}")
    with pytest.raises(TokenMalformed):
        token_from_jwt(KEY, f"{header}{extra}.{payload}.{signature}")


def test_claims_are_read_without_padding() -> None:
    for length in range(8):
        claims = {"exp": 1_800_000_000, "filler": "x" * length}
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        assert read_claims(f"h.{payload}.s") == claims


@pytest.mark.parametrize(
    "name",
    [
        "greeter@project-1.iam.gserviceaccount.com",
        "123-compute@developer.gserviceaccount.com",
        "a@b",
        "103456789012345678901",
    ],
)
def test_an_account_is_an_email_or_a_number(name: str) -> None:
    assert is_account(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "greeter",
        "a@b/c",
        "a@b:signBlob",
        "a@b?x",
        "a@b#",
        "a%2f@b",
        "a b@c",
        "a@b\n",
        "../x@y",
        "@b",
        "a@",
        "1",
        "é@b",
    ],
)
def test_an_account_must_not_have_characters_that_change_a_url(name: str) -> None:
    assert not is_account(name)


def test_an_account_has_bounded_length() -> None:
    assert not is_account("a" * 320 + "@b")


def test_the_key_of_a_route_has_its_impersonated_account_delegates_and_audience() -> None:
    origin = Origin("https", "greeter.example", 443)
    assert TokenKey.for_route(Route(name="a", origin=origin)) == (None, (), "https://greeter.example")
    route = Route(name="a", origin=origin, audience="https://other", impersonate="a@b", delegates=("c@d",))
    assert TokenKey.for_route(route) == TokenKey("a@b", ("c@d",), "https://other")


@pytest.mark.parametrize(
    ("ahead", "step", "then"),
    [
        (0.0, -7200.0, -7200.0),  # set wrong
        (0.0, 7200.0, 0.0),  # set wrong, or the machine slept
        (7200.0, -7200.0, 0.0),  # set right
        (7200.0, -3600.0, 0.0),  # still wrong: expires too early
        (-7200.0, 7200.0, -7200.0),  # set right, or the machine slept and the clock is as wrong as before
        (-7200.0, -3600.0, -10800.0),  # more wrong than before
    ],
)
def test_a_token_never_lives_longer_because_the_clock_was_set(ahead: float, step: float, then: float) -> None:
    token = replace(token_of(KEY, START), clock_ahead_seconds=ahead)
    assert token.after_clock_step(step) == replace(token, clock_ahead_seconds=then)

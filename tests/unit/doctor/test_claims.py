from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from proxy.doctor.claims import claims_of, life_in_words, raw, taken_apart, time_in_words
from proxy.tokens.model import Token, TokenKey, token_from_jwt

KEY = TokenKey(None, (), "https://svc")
CLAIMS = {"aud": "https://svc", "email": "a@b", "exp": 1_000_000}


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def token(header: str) -> Token:
    return token_from_jwt(KEY, f"{header}.{segment(CLAIMS)}.c2lnbmF0dXJl")


def test_a_token_is_taken_apart_without_its_signature() -> None:
    taken = taken_apart(token(segment({"alg": "RS256", "kid": "1"})), 999_400.4)
    assert taken == {
        "header": {"alg": "RS256", "kid": "1"},
        "claims": CLAIMS,
        "expires_at": "1970-01-12T13:46:40Z",
        "remaining_seconds": 600,
    }
    assert "c2lnbmF0dXJl" not in json.dumps(taken)


@pytest.mark.parametrize("header", ["eA", "A", segment([1])])
def test_a_header_that_is_none_is_shown_as_empty(header: str) -> None:
    assert taken_apart(token(header), 0)["header"] == {}


def test_the_token_itself_is_without_the_scheme() -> None:
    whole = token(segment({}))
    assert raw(whole).endswith(".c2lnbmF0dXJl")
    assert not raw(whole).startswith("Bearer")
    assert claims_of(whole) == CLAIMS


def test_times_are_told_as_people_read_them() -> None:
    assert time_in_words(0) == "1970-01-01T00:00:00Z"
    assert [life_in_words(seconds) for seconds in (59.6, 119, 120, 3599)] == ["60 s", "119 s", "2 min", "60 min"]

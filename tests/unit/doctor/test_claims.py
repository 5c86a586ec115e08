from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from proxy.doctor.claims import claims_of, decode_token, format_duration, format_time, jwt_of
from proxy.tokens.model import Token, TokenKey, token_from_jwt

KEY = TokenKey(None, (), "https://svc")
CLAIMS = {"aud": "https://svc", "email": "a@b", "exp": 1_000_000}


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def token(header: str) -> Token:
    return token_from_jwt(KEY, f"{header}.{segment(CLAIMS)}.c2lnbmF0dXJl")


def test_a_decoded_token_has_no_signature() -> None:
    taken = decode_token(token(segment({"alg": "RS256", "kid": "1"})), 999_400.4)
    assert taken == {
        "header": {"alg": "RS256", "kid": "1"},
        "claims": CLAIMS,
        "expires_at": "1970-01-12T13:46:40Z",
        "remaining_seconds": 600,
    }
    assert "c2lnbmF0dXJl" not in json.dumps(taken)


@pytest.mark.parametrize("header", ["eA", "A", segment([1])])
def test_an_invalid_header_becomes_an_empty_one(header: str) -> None:
    assert decode_token(token(header), 0)["header"] == {}


def test_the_jwt_is_without_the_scheme() -> None:
    whole = token(segment({}))
    assert jwt_of(whole).endswith(".c2lnbmF0dXJl")
    assert not jwt_of(whole).startswith("Bearer")
    assert claims_of(whole) == CLAIMS


def test_times_and_durations_are_formatted() -> None:
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert [format_duration(seconds) for seconds in (59.6, 119, 120, 3599)] == ["60 s", "119 s", "2 min", "60 min"]

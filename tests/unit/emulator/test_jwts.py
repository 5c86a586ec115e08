from __future__ import annotations

import base64
import json

import pytest
from google.auth import jwt

from proxy.emulator.jwts import Flaw, Key, TokenRefused, check_times, parse


def _segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def key() -> Key:
    return Key()


def _flaw(token: str, keys: dict[str, str]) -> Flaw:
    with pytest.raises(TokenRefused) as caught:
        parse(token).verified(keys)
    assert token == "" or token not in str(caught.value)
    return caught.value.flaw


def test_google_auth_verifies_a_token_of_the_emulator(key: Key) -> None:
    token = key.sign({"aud": "x", "iat": 1, "exp": 2**40})
    assert jwt.decode(token, certs={key.key_id: key.public_pem}, audience="x") == {"aud": "x", "iat": 1, "exp": 2**40}  # type: ignore[no-untyped-call]  # google-auth
    assert jwt.decode_header(token) == {"typ": "JWT", "alg": "RS256", "kid": key.key_id}  # type: ignore[no-untyped-call]  # google-auth


def test_a_signed_token_is_verified(key: Key) -> None:
    assert parse(key.sign({"aud": "x"})).verified({key.key_id: key.public_pem}) == {"aud": "x"}


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b",
        "a.b.c.d",
        "..",
        f"{_segment({})}.{_segment({})}.",
        f"{_segment({})}.{_segment([])}.AA",
        f"{_segment({})}.{_segment('{}')}.AA",
        f"{_segment({})}.!!!!.AA",
        f"{_segment({})}=.{_segment({})}.AA",
        f"{_segment({})}.{_segment({})}.AAAAA",
        f"{_segment({})}.{base64.urlsafe_b64encode(bytes([255, 254])).decode().rstrip('=')}.AA",
        "ya29.an-access-token",
    ],
)
def test_any_other_text_than_a_signed_jwt_is_malformed(key: Key, token: str) -> None:
    assert _flaw(token, {key.key_id: key.public_pem}) is Flaw.MALFORMED


@pytest.mark.parametrize(
    ("header", "flaw"),
    [
        ({"alg": "none"}, Flaw.ALGORITHM),
        ({"alg": "HS256"}, Flaw.ALGORITHM),
        ({}, Flaw.ALGORITHM),
        ({"alg": "RS256", "crit": ["b64"]}, Flaw.ALGORITHM),
        ({"alg": "RS256"}, Flaw.UNKNOWN_KEY),
        ({"alg": "RS256", "kid": ["a list"]}, Flaw.UNKNOWN_KEY),
        ({"alg": "RS256", "kid": "somebody else's"}, Flaw.UNKNOWN_KEY),
    ],
)
def test_only_rs256_with_a_known_key_is_verified(key: Key, header: dict[str, object], flaw: Flaw) -> None:
    assert _flaw(f"{_segment(header)}.{_segment({})}.AAAA", {key.key_id: key.public_pem}) is flaw


def test_a_changed_claim_breaks_the_signature(key: Key) -> None:
    header, _, signature = key.sign({"aud": "x"}).split(".")
    assert _flaw(f"{header}.{_segment({'aud': 'y'})}.{signature}", {key.key_id: key.public_pem}) is Flaw.SIGNATURE


def test_another_key_under_the_same_id_does_not_verify(key: Key) -> None:
    assert _flaw(key.sign({}), {key.key_id: Key().public_pem}) is Flaw.SIGNATURE


@pytest.mark.parametrize(
    ("claims", "flaw"),
    [
        ({"iat": 100, "exp": 3700}, None),
        ({"iat": 1005, "exp": 3700}, None),
        ({"iat": 100, "exp": 996}, None),
        ({"iat": 1006, "exp": 3700}, Flaw.TOO_EARLY),
        ({"iat": 100, "exp": 995}, Flaw.EXPIRED),
        ({"exp": 3700}, Flaw.CLAIMS),
        ({"iat": 100}, Flaw.CLAIMS),
        ({"iat": 100, "exp": "3700"}, Flaw.CLAIMS),
        ({"iat": True, "exp": 3700}, Flaw.CLAIMS),
    ],
)
def test_times_are_checked_within_the_skew(claims: dict[str, object], flaw: Flaw | None) -> None:
    if flaw is None:
        assert check_times(claims, 1000.0, skew_seconds=5) == (claims["iat"], claims["exp"])
        return
    with pytest.raises(TokenRefused) as caught:
        check_times(claims, 1000.0, skew_seconds=5)
    assert caught.value.flaw is flaw


def test_a_parsed_token_has_no_signature_in_its_repr(key: Key) -> None:
    token = key.sign({"aud": "x"})
    assert token.split(".")[2] not in repr(parse(token))
    assert str(parse(token).signature) not in repr(parse(token))

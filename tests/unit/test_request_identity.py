from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.request_identity import Unverified, Verifier, check_key, is_signed_for, public_octets
from tests.support.signing_restate import SigningKey, base58, base64url

NOW = 1_800_000_000.0
PATH = "/invoke/Greeter/greet"
KEY = SigningKey(b"one")
OTHER = SigningKey(b"other")

# The key that restate-server logs for the private key in its own tests.
KNOWN = [
    (
        "publickeyv1_AfQwmwfgEZhrWpvv8N52SHpRtZqGGaFr4AZN6qtYWSiY",
        "8f9053bc7f96268d101879b685d2ceba4e8feeccca8134319a99e79997bf0dc5",
    ),
]

Head = list[tuple[bytes, bytes, bool]]


def head(jwt: str | bytes | None, scheme: bytes | None = b"v1") -> Head:
    lines: Head = [(b":path", PATH.encode(), False), (b"accept", b"*/*", False)]
    if scheme is not None:
        lines.append((b"x-restate-signature-scheme", scheme, False))
    if jwt is not None:
        lines.append((b"x-restate-jwt-v1", jwt.encode() if isinstance(jwt, str) else jwt, False))
    return lines


def refusal(lines: Head, path: str = PATH, now: float = NOW, keys: tuple[str, ...] = (KEY.public,)) -> Unverified:
    with pytest.raises(Unverified) as caught:
        Verifier(keys).verify(lines, path.encode(), now)
    return caught.value


# ---- keys


@pytest.mark.parametrize(("key", "octets"), KNOWN)
def test_a_key_as_restate_logs_it_is_accepted(key: str, octets: str) -> None:
    assert public_octets(key).hex() == octets


@given(st.binary(min_size=32, max_size=32).filter(lambda octets: octets[1:31] not in (bytes(30), b"\xff" * 30)))
def test_every_public_key_survives_parsing(octets: bytes) -> None:
    try:
        assert public_octets(f"publickeyv1_{base58(octets)}") == octets
    except ValueError as exc:
        assert "anybody can sign for it" in str(exc)  # noqa: PT017 - it must not be raised for another reason


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("", "must begin with publickeyv1_"),
        ("ABC", "must begin with publickeyv1_"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIPe", "not the private key"),
        ("publickeyv1_", "it has 0 octets"),
        ("publickeyv1_" + base58(b"\1" * 31), "it has 31 octets"),
        ("publickeyv1_" + base58(b"\1" * 33), "it has 33 octets"),
        ("publickeyv1_" + "1" * 44, "it has 44 octets"),
        ("publickeyv1_" + "z" * 5_000_000, "base58 of 32 octets"),
        ("publickeyv1_AfQwmwfgEZhrWpvv8N52SHpRtZqGGaFr4AZN6qtYWSi0", "base58 of 32 octets"),
    ],
)
def test_an_invalid_key_is_refused_with_the_reason_and_not_quoted(key: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        check_key(key)
    assert not key.removeprefix("publickeyv1_") or key not in str(caught.value)


# The points of order 1, 2, 4 and 8, the last two of them also with a coordinate that is not reduced.
@pytest.mark.parametrize(
    "octets",
    [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_a_weak_key_that_verifies_forged_signatures_is_refused(octets: str) -> None:
    with pytest.raises(ValueError, match="anybody can sign for it"):
        check_key(f"publickeyv1_{base58(bytes.fromhex(octets))}")


# ---- paths


@pytest.mark.parametrize(
    ("path", "signed"),
    [
        ("/discover", "/discover"),
        ("/greeter/discover", "/discover"),
        ("/a/b/discover?x=/y", "/discover"),
        ("/invoke/Greeter/greet", "/invoke/Greeter/greet"),
        ("/greeter/invoke/Greeter/greet", "/invoke/Greeter/greet"),
        ("/invoke/invoke/Greeter/greet", "/invoke/Greeter/greet"),
        ("/a/b/invoke/G/h?x=/discover", "/invoke/G/h"),
        ("/greeter/invoke/G/discover", "/invoke/G/discover"),
        ("/greeter/invoke/G/a%20b", "/invoke/G/a%20b"),
        ("/serdes/G/encode/a", "/serdes/G/encode/a"),
        ("/serdes/serdes/G/decode/a/b", "/serdes/G/decode/a/b"),
        ("/greeter/something/new", "/something/new"),
        ("/something/new", "/something/new"),
    ],
)
def test_a_signature_covers_the_path_without_the_prefix(path: str, signed: str) -> None:
    assert is_signed_for(path.encode(), signed.encode())


@pytest.mark.parametrize(
    ("path", "signed"),
    [
        ("/greeter/discover", "/greeter/discover"),
        ("/greeter/discover", "discover"),
        ("/greeter/discover", "/"),
        ("/greeter/discover", ""),
        ("/greeter/invoke/G/discover", "/discover"),
        ("/greeter/invoke/G/h", "/invoke/G/other"),
        ("/greeter/invoke/G/h", "/h"),
        ("/greeter/invoke/G/h", "/G/h"),
        ("/greeter/invoke/G/h", "/invoke/G/h?"),
        ("/greeter/invoke/G/h/discover", "/invoke/G/h"),
        ("/greeter/serdes/G/encode/discover", "/discover"),
        ("/greeter/something/new", "/"),
        ("/greeter/something/new", "new"),
        ("/greeter/something/new", ""),
        ("/greeter/something/new", "/new/something"),
    ],
)
def test_a_signature_for_another_path_is_refused(path: str, signed: str) -> None:
    assert not is_signed_for(path.encode(), signed.encode())


# ---- requests


@pytest.mark.parametrize("path", [PATH, f"/greeter{PATH}", f"/a/b{PATH}?x=y"])
@pytest.mark.parametrize("now", [NOW - 60, NOW, NOW + 59.9])
def test_a_request_signed_with_a_known_key_passes(path: str, now: float) -> None:
    Verifier((KEY.public,)).verify(head(KEY.jwt(PATH, at=NOW)), path.encode(), now)


def test_several_keys_may_be_known_at_a_time() -> None:
    verifier = Verifier((KEY.public, OTHER.public))
    for key in (KEY, OTHER):
        verifier.verify(head(key.jwt(PATH, at=NOW)), PATH.encode(), NOW)
        verifier.verify(head(key.jwt(PATH, at=NOW, header={"kid": None})), PATH.encode(), NOW)


def test_path_and_time_of_a_remembered_signature_are_checked_again() -> None:
    verifier = Verifier((KEY.public,))
    lines = head(KEY.jwt(PATH, at=NOW))
    verifier.verify(lines, PATH.encode(), NOW)
    verifier.verify(lines, PATH.encode(), NOW)
    for path, now, reason in (
        (b"/invoke/Greeter/other", NOW, "wrong-path"),
        (PATH.encode(), NOW + 60, "expired"),
        (PATH.encode(), NOW - 61, "not-yet-valid"),
    ):
        with pytest.raises(Unverified) as caught:
            verifier.verify(lines, path, now)
        assert caught.value.reason == reason


def test_the_memory_for_signatures_is_bounded() -> None:
    verifier = Verifier((KEY.public,))
    for number in range(1_100):
        path = f"/invoke/Greeter/h{number}"
        verifier.verify(head(KEY.jwt(path, at=NOW)), path.encode(), NOW)
    assert len(verifier._kept) <= 1_024


def test_a_changed_signature_does_not_match_a_remembered_one() -> None:
    verifier = Verifier((KEY.public,))
    token = KEY.jwt(PATH, at=NOW)
    verifier.verify(head(token), PATH.encode(), NOW)
    signed, _, signature = token.rpartition(".")
    for changed in (f"{signed}.{signature[::-1]}", f"{OTHER.jwt(PATH, at=NOW).rpartition('.')[0]}.{signature}"):
        with pytest.raises(Unverified):
            verifier.verify(head(changed), PATH.encode(), NOW)


SIGNED = KEY.jwt(PATH, at=NOW)


@pytest.mark.parametrize(
    ("lines", "reason", "said"),
    [
        (head(None, None), "missing", "has no x-restate-signature-scheme"),
        (head(SIGNED, None), "missing", "has no x-restate-signature-scheme"),
        (head(None, b"unsigned"), "unsigned", "request-identity-private-key-pem-file"),
        (head(SIGNED, b"unsigned"), "unsigned", "request-identity-private-key-pem-file"),
        (head(SIGNED, b"v2"), "malformed", "is not v1"),
        (head(SIGNED, b"V1"), "malformed", "is not v1"),
        ([*head(SIGNED), *head(None)], "malformed", "is not v1"),
        (head(None), "malformed", "has no x-restate-jwt-v1"),
        ([*head(SIGNED), *head(SIGNED, None)], "malformed", "has 2 x-restate-jwt-v1"),
        (head(b""), "malformed", "is no JWT"),
        (head(b"a.b.c"), "malformed", "is no JWT"),
        (head(b"\xff\xfe.."), "malformed", "is no JWT"),
        (head(SIGNED + "=="), "malformed", "is no JWT"),
        (head(SIGNED + " "), "malformed", "is no JWT"),
        (head(f" {SIGNED}"), "malformed", "is no JWT"),
        (head(SIGNED.replace(".", "..", 1)), "malformed", "is no JWT"),
        (head(f"{SIGNED}+/"), "malformed", "is no JWT"),
        (head(base64url(b"[" * 2_000) + SIGNED[SIGNED.index(".") :]), "malformed", "is no JWT"),
        (head(f"{base64url(b'[]')}.{base64url(b'{}')}.AAAA"), "malformed", "is not signed by EdDSA"),
        (head("A" * 5_000), "malformed", "is longer than 4096 octets"),
        (head(KEY.jwt(PATH, at=NOW, header={"alg": "none"})), "malformed", "is not signed by EdDSA"),
        (head(KEY.jwt(PATH, at=NOW, header={"alg": "HS256"})), "malformed", "is not signed by EdDSA"),
        (head(KEY.jwt(PATH, at=NOW, header={"crit": ["b64"]})), "malformed", "is not signed by EdDSA"),
        (head(OTHER.jwt(PATH, at=NOW)), "unknown-key", f"signed with {OTHER.public}, which is not in"),
        (head(KEY.jwt(PATH, at=NOW, header={"kid": "secret"})), "unknown-key", "a key of another kind"),
        (head(KEY.jwt(PATH, at=NOW, header={"kid": 1})), "unknown-key", "a key without a name"),
        (head(OTHER.jwt(PATH, at=NOW, header={"kid": KEY.public})), "bad-signature", "is wrong"),
        (head(OTHER.jwt(PATH, at=NOW, header={"kid": None})), "bad-signature", "is wrong"),
        (head(SIGNED.rpartition(".")[0] + "."), "bad-signature", "is wrong"),
        (head(SIGNED.rpartition(".")[0] + ".AAAA"), "bad-signature", "is wrong"),
        (head(KEY.jwt(PATH, at=NOW, aud=None)), "malformed", "has no path"),
        (head(KEY.jwt(PATH, at=NOW, aud=[PATH])), "malformed", "has no path"),
        (head(KEY.jwt(PATH, at=NOW, exp=None)), "malformed", "has no time"),
        (head(KEY.jwt(PATH, at=NOW, nbf=None)), "malformed", "has no time"),
        (head(KEY.jwt(PATH, at=NOW, iat=None)), "malformed", "has no time"),
        (head(KEY.jwt(PATH, at=NOW, exp=True)), "malformed", "has no time"),
        (head(KEY.jwt(PATH, at=NOW, exp=str(int(NOW) + 60))), "malformed", "has no time"),
        (head(KEY.jwt("/invoke/Greeter/other", at=NOW)), "wrong-path", "for another path"),
        (head(KEY.jwt("/discover", at=NOW)), "wrong-path", "for another path"),
        (head(KEY.jwt("\ud800", at=NOW)), "wrong-path", "for another path"),
        (head(KEY.jwt(PATH, at=NOW - 60)), "expired", "compare the clocks"),
        (head(KEY.jwt(PATH, at=NOW + 61)), "not-yet-valid", "compare the clocks"),
        (head(KEY.jwt(PATH, at=NOW, exp=float("nan"))), "expired", "compare the clocks"),
        (head(KEY.jwt(PATH, at=NOW, nbf=float("nan"))), "not-yet-valid", "compare the clocks"),
    ],
)
def test_every_other_request_is_refused_with_the_reason(lines: Head, reason: str, said: str) -> None:
    refused = refusal(lines)
    assert refused.reason == reason
    assert said in str(refused)
    assert "secret" not in str(refused)
    for _, value, _ in lines:
        assert len(value) < 20 or value.decode("latin-1") not in str(refused)


def test_a_jwt_of_claims_that_are_no_object_is_refused() -> None:
    signed = f"{base64url(json.dumps({'alg': 'EdDSA', 'kid': KEY.public}).encode())}.{base64url(b'7')}"
    assert refusal(head(f"{signed}.{base64url(KEY.private.sign(signed.encode()))}")).reason == "malformed"


@given(st.binary(max_size=300))
def test_random_fields_never_pass(value: bytes) -> None:
    assert refusal(head(value)).reason in {"malformed", "unknown-key", "bad-signature"}

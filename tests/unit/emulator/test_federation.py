from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from google.auth import _helpers, aws

from proxy.emulator import Google
from proxy.emulator.federation import AwsKey, OidcProvider, SubjectRefused, UnknownProvider
from tests.support.emulated import Clock

JWT = "urn:ietf:params:oauth:token-type:jwt"
AWS = "urn:ietf:params:aws:token-type:aws4_request"
VERIFICATION = "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"


# ID tokens of a cluster or of Azure


@pytest.fixture
def cluster(google: Google) -> OidcProvider:
    return google.federation.cluster


@pytest.mark.parametrize("token_type", [JWT, "urn:ietf:params:oauth:token-type:id_token"])
def test_an_id_token_proves_its_subject(cluster: OidcProvider, token_type: str) -> None:
    assert cluster.subject(token_type, cluster.token("pod")) == "pod"
    assert cluster.subject(token_type, cluster.token("pod", audience=cluster.audience)) == "pod"


def test_an_id_token_is_valid_until_it_expires(cluster: OidcProvider, clock: Clock) -> None:
    token = cluster.token("pod")
    clock.now += 3600 + 59
    assert cluster.subject(JWT, token) == "pod"
    clock.now += 1
    with pytest.raises(SubjectRefused, match="expired"):
        cluster.subject(JWT, token)
    with pytest.raises(SubjectRefused, match="expired"):
        cluster.subject(JWT, cluster.token("pod", lifetime_seconds=-3600))


def test_an_id_token_is_for_this_provider_and_of_its_issuer(google: Google, cluster: OidcProvider) -> None:
    with pytest.raises(SubjectRefused, match="audience"):
        cluster.subject(JWT, cluster.token("pod", audience="https://elsewhere"))
    with pytest.raises(SubjectRefused, match="key id is unknown"):
        cluster.subject(JWT, google.federation.azure.token("pod", audience=cluster.accepts[0]))
    cluster.issuer, was = "https://another.example", cluster.issuer
    token = cluster.token("pod")
    cluster.issuer = was
    with pytest.raises(SubjectRefused, match="issuer"):
        cluster.subject(JWT, token)


def test_an_id_token_lives_at_most_a_day(cluster: OidcProvider) -> None:
    assert cluster.subject(JWT, cluster.token("pod", lifetime_seconds=24 * 3600)) == "pod"
    with pytest.raises(SubjectRefused, match="24 hours"):
        cluster.subject(JWT, cluster.token("pod", lifetime_seconds=24 * 3600 + 1))


@pytest.mark.parametrize("subject", ["", "x" * 128])
def test_a_subject_has_from_1_to_127_octets(cluster: OidcProvider, subject: str) -> None:
    with pytest.raises(SubjectRefused, match="127"):
        cluster.subject(JWT, cluster.token(subject))


def test_junk_is_refused_as_an_id_token_and_not_quoted(cluster: OidcProvider) -> None:
    with pytest.raises(SubjectRefused, match="not a signed JWT") as caught:
        cluster.subject(JWT, "junk")
    assert "junk" not in str(caught.value)
    with pytest.raises(SubjectRefused, match="subject_token_type"):
        cluster.subject(AWS, cluster.token("pod"))


def test_a_provider_can_be_added(google: Google) -> None:
    provider = OidcProvider("//iam.googleapis.com/p/providers/x", "https://x", google.clock, google.issued_secrets)
    with pytest.raises(UnknownProvider):
        google.federation.exchange(provider.audience, JWT, provider.token("s"))
    google.federation.add_provider(provider)
    assert google.federation.exchange(provider.audience, JWT, provider.token("s")) == (
        "principal://iam.googleapis.com/p/subject/s"
    )


# Signed requests of AWS


@pytest.fixture(autouse=True)
def signing_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let google-auth sign with the same clock."""
    import datetime

    monkeypatch.setattr(
        _helpers, "utcnow", lambda: datetime.datetime.fromtimestamp(clock.now, datetime.UTC).replace(tzinfo=None)
    )


def signed(google: Google, key: AwsKey, target: str | None = None, **more: str) -> dict[str, Any]:
    """The request as google-auth signs it, before it is quoted."""
    signer = aws.RequestSigner("eu-west-1")  # type: ignore[no-untyped-call]  # google-auth
    credentials = aws.AwsSecurityCredentials(key.access_key_id, key.secret_access_key, key.session_token)
    options = signer.get_request_options(  # type: ignore[no-untyped-call]  # google-auth
        credentials, VERIFICATION.replace("{region}", "eu-west-1"), "POST", additional_headers=more
    )
    fields = options["headers"] | {"x-goog-cloud-target-resource": target or google.federation.aws.audience}
    lines = [{"key": name, "value": value} for name, value in fields.items()]
    return {"url": options["url"], "method": options["method"], "headers": lines}


def subject(google: Google, request: object) -> str:
    return google.federation.aws.subject(AWS, quote(json.dumps(request)))


def field(request: dict[str, Any], name: str) -> dict[str, str]:
    found: dict[str, str] = next(line for line in request["headers"] if line["key"].lower() == name)
    return found


def test_a_users_key_proves_the_user(google: Google) -> None:
    key = google.federation.aws.user_key("me")
    assert subject(google, signed(google, key)) == key.arn == "arn:aws:iam::210987654321:user/me"
    assert subject(google, signed(google, key, f"https:{google.federation.aws.audience}")) == key.arn
    assert subject(google, signed(google, key, Zeta="a b")) == key.arn


def test_a_roles_key_proves_the_role_until_it_expires(google: Google, clock: Clock) -> None:
    provider = google.federation.aws
    key = provider.role_key("reader")
    assert key.access_key_id.startswith("ASIA")
    assert subject(google, signed(google, key)) == provider.role_arn("reader")
    assert provider.role_key("reader") is key
    clock.now += 3600 - 299
    assert provider.role_key("reader") is not key
    clock.now += 299
    with pytest.raises(SubjectRefused, match="ExpiredToken"):
        subject(google, signed(google, key))


def test_the_signature_is_verified(google: Google) -> None:
    key = google.federation.aws.user_key("me")
    other = AwsKey(
        access_key_id=key.access_key_id, secret_access_key="x", session_token=None, arn=key.arn, expires_at=None
    )
    with pytest.raises(SubjectRefused, match="SignatureDoesNotMatch") as caught:
        subject(google, signed(google, other))
    assert key.access_key_id not in str(caught.value)


def test_signed_parts_cannot_be_changed(google: Google) -> None:
    request = signed(google, google.federation.aws.user_key("me"), Zeta="a")
    field(request, "zeta")["value"] = "b"
    with pytest.raises(SubjectRefused, match="SignatureDoesNotMatch"):
        subject(google, request)


def test_an_unknown_or_revoked_key_is_refused(google: Google) -> None:
    key = google.federation.aws.user_key("me")
    request = signed(google, key)
    google.federation.aws.revoke(key.access_key_id)
    with pytest.raises(SubjectRefused, match="InvalidClientTokenId"):
        subject(google, request)


def test_a_temporary_key_requires_its_session_token(google: Google) -> None:
    key = google.federation.aws.role_key("reader")
    without = AwsKey(
        access_key_id=key.access_key_id,
        secret_access_key=key.secret_access_key,
        session_token=None,
        arn=key.arn,
        expires_at=None,
    )
    with pytest.raises(SubjectRefused, match="session token"):
        subject(google, signed(google, without))


@pytest.mark.parametrize("seconds", [-901, 901])
def test_a_request_signed_at_another_time_is_refused(google: Google, clock: Clock, seconds: int) -> None:
    request = signed(google, google.federation.aws.user_key("me"))
    clock.now += seconds
    with pytest.raises(SubjectRefused, match="SignatureExpired"):
        subject(google, request)


def test_a_request_for_another_provider_is_refused(google: Google) -> None:
    with pytest.raises(SubjectRefused, match="x-goog-cloud-target-resource"):
        subject(google, signed(google, google.federation.aws.user_key("me"), "//iam.googleapis.com/other"))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("url", "https://sts.eu-west-1.amazonaws.com?Action=GetSessionToken&Version=2011-06-15", "GetCallerIdentity"),
        ("url", "https://sts.eu-west-1.evil.example?Action=GetCallerIdentity&Version=2011-06-15", "regional STS"),
        ("url", "http://sts.eu-west-1.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15", "regional STS"),
        ("url", 5, "regional STS"),
        ("url", "https://[x", "its url is none"),
        ("method", "GET", "not a POST"),
        ("body", "x", "not a POST without a body"),
        ("headers", "x", "not a list"),
        ("headers", [5], "one key with one value"),
        ("headers", [{"key": "a", "value": "b", "more": "c"}], "one key with one value"),
        ("headers", [{"key": "a", "value": "b"}, {"key": "A", "value": "b"}], "one key with one value"),
        ("headers", [], "lacks a header"),
        ("more", "x", "url, method and headers"),
    ],
)
def test_a_malformed_request_is_refused(google: Google, name: str, value: object, what: str) -> None:
    request = signed(google, google.federation.aws.user_key("me"))
    with pytest.raises(SubjectRefused, match=what):
        subject(google, request | {name: value})


@pytest.mark.parametrize(
    ("name", "old", "new", "what"),
    [
        ("authorization", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1", "not AWS4-HMAC-SHA256"),
        ("authorization", "/sts/", "/iam/", "not AWS4-HMAC-SHA256"),
        ("authorization", "/eu-west-1/", "/us-east-1/", "credential scope"),
        ("authorization", "host;x-amz-date", "x-amz-date;host", "SignedHeaders"),
        ("authorization", "host;x-amz-date", "host", "SignedHeaders"),
        ("authorization", "host;x-amz-date", "host;x-amz-date;zeta", "SignedHeaders"),
        ("x-amz-date", "T", " ", "not a time"),
        ("x-amz-date", "20270115", "20270116", "credential scope"),
    ],
)
def test_a_malformed_signature_is_refused(google: Google, name: str, old: str, new: str, what: str) -> None:
    request = signed(google, google.federation.aws.user_key("me"))
    line = field(request, name)
    assert old in line["value"]
    line["value"] = line["value"].replace(old, new)
    with pytest.raises(SubjectRefused, match=what):
        subject(google, request)


def test_a_session_token_must_be_signed(google: Google) -> None:
    request = signed(google, google.federation.aws.user_key("me"))
    request["headers"].append({"key": "x-amz-security-token", "value": "x"})
    with pytest.raises(SubjectRefused, match="x-amz-security-token is not signed"):
        subject(google, request)


def test_junk_is_refused_as_a_request(google: Google) -> None:
    for junk in ("junk", quote("[]"), "%ff", "[" * 100_000):
        with pytest.raises(SubjectRefused, match="it is not"):
            google.federation.aws.subject(AWS, junk)
    with pytest.raises(SubjectRefused, match="subject_token_type"):
        google.federation.aws.subject(JWT, "junk")


def test_the_repr_of_an_aws_key_has_no_secrets(google: Google) -> None:
    key = google.federation.aws.role_key("reader")
    assert key.secret_access_key not in repr(key)
    assert key.session_token not in (None, "")
    assert str(key.session_token) not in repr(key)
    assert {key.secret_access_key, key.session_token} <= google.issued_secrets

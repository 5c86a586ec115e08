from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.quoting import NOT_SHOWN, holds_credential, masked, one_line, plain, quoted, secrets_of_request

JWT = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJodHRwczovL3N2YyJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----\n"
KEY = json.dumps({"type": "service_account", "private_key": PEM, "client_email": "a@b.c"})

# ---- values


@pytest.mark.parametrize(
    "value",
    [
        "", "9081", "-1", "3.0", "1_000", "1MiB", "30 s", "many", "nghttp", "my-project", "a.b~c_d", "team/greeter",
        "/home/me/keys/my-project-1a2b3c4d5e6f.json", "/Users/JohnDoe/Downloads/my-project-123456-0a1b2c3d4e5f.json",
        "/home/me/My Keys/key.json", "key.json", "config/routes.toml", "../x", "./x", "~/.config/gcloud/x.json", "/",
        "/var/run/secrets/..2026_01_02_03_04_05.123456789/token", "unix:/run/s.sock", "unix:relative",
        "127.0.0.1:9081", ":9081", "[::1]:9081", "::1:9081", "fe80::1%eth0", "127.0.0.1:h2c",
        "metadata.google.internal:80", "--no-such-flag", "-x", "svc.run.app",
        "greeter-abcdefghij-ew.a.run.app", "project-k8s-e2e-t1-prod",
        "restate-invoker@my-project.iam.gserviceaccount.com", "123-compute@developer.gserviceaccount.com",
        "https://greeter-123456789012.europe-west1.run.app/base", "http://[::1]:8080/x", "ftp://svc.run.app",
        "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/pool/providers/provider",
        "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/ns/NS/sa/KSA",
    ],
)  # fmt: skip
def test_a_value_that_is_clearly_no_secret_is_quoted(value: str) -> None:
    assert plain(value) == quoted(value) == repr(value)


@pytest.mark.parametrize(("value", "shown"), [(5, "5"), (2.5, "2.5"), (True, "true"), (Path("/a/b"), "'/a/b'")])
def test_numbers_booleans_and_paths_are_quoted(value: object, shown: str) -> None:
    assert quoted(value) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [("https://svc/a?key=hunter2", "'https://svc/a'"), ("https://svc#hunter2", "'https://svc'")],
)
def test_of_a_url_neither_query_nor_fragment_is_quoted(url: str, shown: str) -> None:
    assert quoted(url) == shown


def test_a_name_that_is_not_utf8_is_quoted_with_escapes() -> None:
    assert quoted("/caf\udce9") == r"'/caf\udce9'"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (KEY, "what looks like a credential (not shown)"),
        (json.dumps(json.loads(KEY), indent=2), "what looks like a credential (not shown)"),
        (PEM, "what looks like a credential (not shown)"),
        (base64.b64encode(KEY.encode()).decode(), "what looks like a credential (not shown)"),
        (base64.b64encode(PEM.encode()).decode(), "what looks like a credential (not shown)"),
        (PEM.splitlines()[1], "what looks like a credential (not shown)"),
        (JWT, "what looks like a credential (not shown)"),
        (f"Bearer {JWT}", "what looks like a credential (not shown)"),
        ("Basic YWRtaW46aHVudGVyMg==", "what looks like a credential (not shown)"),
        ("ya29.a0AfH6SMBx", "what looks like a credential (not shown)"),
        ("1//0gABCDEFGHIJ", "what looks like a credential (not shown)"),
        ("GOCSPX-AbCdEfGhIjKl", "what looks like a credential (not shown)"),
        ("https://user:hunter2@svc/x", "what looks like a credential (not shown)"),
        ("https://user@svc/x", "a text of 18 characters (not shown)"),
        ("user:hunter2@svc", "a text of 16 characters (not shown)"),
        ("https://admin:correct-horse", "a text of 27 characters (not shown)"),
        ("admin:hunter2", "a text of 13 characters (not shown)"),
        ("me @example.com", "a text of 15 characters (not shown)"),
        ("correct horse battery", "a text of 21 characters (not shown)"),
        ("one\ntwo", "a text of 7 characters on 2 lines (not shown)"),
        ("x" * 301, "a text of 301 characters (not shown)"),
        ("/" + "x" * 300, "a text of 301 characters (not shown)"),
        (10**300, "a number of 997 bits"),
        pytest.param(-1 << 20_000, "a number of 20001 bits", id="more digits than Python writes"),
        ({"a": JWT}, "a table"),
        ([JWT], "a list"),
        (None, "a NoneType"),
    ],
)  # fmt: skip
def test_any_other_value_is_described_instead_of_quoted(value: object, shown: str) -> None:
    assert plain(value) is None
    assert quoted(value) == shown


def test_keys_and_tokens_of_no_known_form_are_not_quoted() -> None:
    chosen = random.Random(7)
    quotable = 0
    for _ in range(400):
        octets = chosen.randbytes(40)
        secrets = [
            base64.b64encode(octets).decode(),
            "/" + base64.b64encode(octets).decode(),
            base64.urlsafe_b64encode(octets[:24]).decode(),
            base64.urlsafe_b64encode(octets).rstrip(b"=").decode(),
            base64.b32encode(octets[:20]).decode(),
            octets[:20].hex(),
            octets.hex().upper(),
        ]
        quotable += sum(plain(secret) is not None for secret in secrets)
    assert quotable < 5


@example("/0", "Bearer 0123abcd", "")
@example("/bin/a", "Bearer 0123abcd", "")
@given(st.text(), st.sampled_from([JWT, PEM, "Bearer 0123abcd", "https://a:hunter2@b"]), st.text())
def test_a_value_with_a_credential_in_it_is_never_quoted(before: str, secret: str, after: str) -> None:
    assert plain(before + secret + " " + after) is None


@given(st.text())
def test_a_quoted_value_is_one_printable_line(value: str) -> None:
    assert quoted(value).isprintable()
    assert len(quoted(value)) < 2_000


# ---- prose


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\r\nlines\tand\x1b[31m colour", "two lines and [31m colour"),
        (f"what is {JWT}?", f"what is {NOT_SHOWN}?"),
        ("ya29.c.b0Aaekm1K0", NOT_SHOWN),
        (f"key {PEM} broken", f"key {NOT_SHOWN} broken"),
        ('{"private_key": "abc", "client_email": "a@b.c"}', '{"private_key": [not shown], "client_email": "a@b.c"}'),
        ("assertion=abc&grant_type=x", "assertion=[not shown]&grant_type=x"),
        ("subject_token: 'a b' is bad", "subject_token: [not shown] is bad"),
        ("see https://me:hunter2@svc/x", "see https://[not shown]svc/x"),
        ("write http://USER:PASSWORD@HOST:PORT", "write http://USER:PASSWORD@HOST:PORT"),
        ("see http://USER:PASSWORD1@HOST:PORT", "see http://[not shown]HOST:PORT"),
        ("key Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5 is bad", f"key {NOT_SHOWN} is bad"),
        (
            "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).",
            "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).",
        ),
        (
            "AADSTS700016: Application '1f0a2b3c-4d5e-4f60-8a7b-9c0d1e2f3a4b' was not found",
            "AADSTS700016: Application '1f0a2b3c-4d5e-4f60-8a7b-9c0d1e2f3a4b' was not found",
        ),
        (
            "see https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity#authenticating_to",
            "see https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity#authenticating_to",
        ),
    ],
)
def test_prose_is_one_line_without_apparent_secrets(text: str, line: str) -> None:
    assert one_line(text) == line


def test_prose_is_bounded() -> None:
    assert one_line("x " * 10_000, 100) == "x " * 49 + "x…"


def test_known_secrets_of_any_form_are_not_in_prose() -> None:
    assert one_line("no hunter2 and hunter22 here", secrets=("hunter2", "hunter22", "")) == (
        f"no {NOT_SHOWN} and {NOT_SHOWN} here"
    )


def test_the_placeholder_of_a_secret_can_be_chosen() -> None:
    assert masked(f"a {JWT} b", "[x]") == "a [x] b"
    assert holds_credential(JWT)
    assert not holds_credential("a b")


def test_parts_of_a_request_that_are_no_secret_may_be_repeated() -> None:
    body = b"grant_type=urn%3Aietf&audience=%2F%2Fiam.googleapis.com&subject_token=abc"
    assert secrets_of_request({"content-type": "application/json", "metadata-flavor": "Google"}, body) == ()
    assert secrets_of_request({}, None) == ()
    assert secrets_of_request({}, b"subject_token=%7B%22headers%22%3A5%7D") != ()


@pytest.mark.parametrize("scheme", ["Bearer", "BEARER Bearer", "bearer bearer  bearer", "Bearer%20Bearer+"])
def test_a_bearer_value_is_masked_behind_a_repeated_scheme(scheme: str) -> None:
    assert "abcdefghijkl" not in masked(f"authorization was {scheme} abcdefghijkl.mnop", "***")


def test_the_public_key_of_a_restate_server_is_no_secret() -> None:
    key = "publickeyv1_H4B8yKogWbQfathRbhskc5TawpProvQAYAXCQxnifjpZ"
    assert plain(key) == repr(key)
    assert one_line(f"signed with {key}, which is new") == f"signed with {key}, which is new"
    for secret in (key.removeprefix("publickeyv1_"), key.replace("public", "private"), f"{key}{key[12:]}"):
        assert plain(secret) is None
        assert key[12:] not in one_line(f"it is {secret}")

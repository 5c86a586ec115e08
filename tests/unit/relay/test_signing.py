from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http2.events import Fields
from proxy.relay.signing import (
    end_to_end,
    end_to_end_response,
    end_to_end_trailers,
    has_token,
    method_line,
    request_authority,
    signed_head,
    token_line,
)

HEAD: Fields = [
    (b":method", b"POST", False),
    (b":scheme", b"http", False),
    (b":authority", b"sidecar:9081", False),
    (b":path", b"/greeter/invoke/Greeter/greet", False),
    (b"content-type", b"application/vnd.restate.invocation.v6", False),
    (b"authorization", b"Bearer the-caller's", True),
]


PROXY_FIELDS = [b"proxy-authorization", b"proxy-authenticate", b"proxy-authentication-info"]


def upstream(head: Fields, authorization: bytes | None = b"Bearer ours") -> Fields:
    return signed_head(
        end_to_end(head),
        method_line(b"POST"),
        (b":scheme", b"https", False),
        (b":authority", b"greeter.run.app", False),
        (b":path", b"/invoke/Greeter/greet", False),
        token_line(authorization) if authorization is not None else None,
    )


def test_pseudo_fields_are_rewritten_and_all_other_fields_are_forwarded_unchanged() -> None:
    assert upstream(HEAD) == [
        (b":method", b"POST", False),
        (b":scheme", b"https", False),
        (b":authority", b"greeter.run.app", False),
        (b":path", b"/invoke/Greeter/greet", False),
        (b"x-serverless-authorization", b"Bearer ours", False),
        (b"content-type", b"application/vnd.restate.invocation.v6", False),
        (b"authorization", b"Bearer the-caller's", True),
    ]


@pytest.mark.parametrize(
    "name",
    [
        b"x-serverless-authorization",
        b"x_serverless_authorization",
        b"x-serverless_authorization",
        b"x_serverless-authorization",
    ],
)
def test_a_client_token_field_is_removed_in_every_spelling_and_number(name: bytes) -> None:
    spoof = [(name, b"Bearer spoofed", False)] * 3
    assert b"Bearer spoofed" not in [value for _, value, _ in upstream(HEAD + spoof)]
    assert b"Bearer spoofed" not in [value for _, value, _ in upstream(HEAD + spoof, authorization=None)]
    assert end_to_end_trailers([*spoof, (b"x-checksum", b"1", False)]) == [(b"x-checksum", b"1", False)]
    assert has_token(HEAD + spoof)
    assert not has_token(HEAD)


@given(st.lists(st.tuples(st.from_regex(rb"[a-z_-]{1,30}", fullmatch=True), st.binary(max_size=20), st.booleans())))
def test_exactly_one_token_field_is_sent_whatever_the_client_sends(extra: Fields) -> None:
    spoof: Fields = [(b"x-serverless-authorization", b"Bearer spoofed", True)]
    sent = upstream(HEAD + extra + spoof)
    tokens = [value for name, value, _ in sent if name.replace(b"_", b"-") == b"x-serverless-authorization"]
    assert tokens == [b"Bearer ours"]


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PROPFIND", b"get"])
def test_a_method_is_forwarded_as_it_is(method: bytes) -> None:
    assert method_line(method) == (b":method", method, False)


def test_host_does_not_contradict_the_new_authority() -> None:
    assert b"host" not in [name for name, _, _ in upstream([*HEAD, (b"host", b"sidecar:9081", False)])]


@pytest.mark.parametrize("name", [*PROXY_FIELDS, b"proxy-connection", b"http2-settings"])
def test_what_is_between_the_client_and_its_proxy_is_not_forwarded(name: bytes) -> None:
    assert name not in [field[0] for field in upstream([*HEAD, (name, b"Basic c2VjcmV0", True)])]
    assert end_to_end_trailers([(name, b"Basic c2VjcmV0", True)]) == []


@pytest.mark.parametrize("name", PROXY_FIELDS)
def test_proxy_authentication_fields_of_the_service_are_not_forwarded(name: bytes) -> None:
    head: Fields = [(b":status", b"407", False), (name, b"Basic", False), (b"www-authenticate", b"Basic", False)]
    assert end_to_end_response(head) == [(b":status", b"407", False), (b"www-authenticate", b"Basic", False)]


def test_a_response_head_without_such_fields_is_forwarded_as_the_same_object() -> None:
    head: Fields = [(b":status", b"200", False), (b"content-type", b"text/plain", False)]
    assert end_to_end_response(head) is head


# RFC 9110, 6.5.1: framing, routing, authentication, request modifiers, response control, content format.
@pytest.mark.parametrize(
    "name",
    [
        *("transfer-encoding", "content-length", "connection", "keep-alive", "upgrade", "te", "trailer"),
        *("host", "max-forwards"),
        *("authorization", "cookie", "set-cookie", "www-authenticate"),
        *("cache-control", "expect", "pragma", "range"),
        *("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"),
        *("accept", "accept-charset", "accept-encoding", "accept-language"),
        *("age", "date", "expires", "location", "retry-after", "vary", "warning"),
        *("content-encoding", "content-type", "content-range"),
    ],
)
def test_a_trailer_that_belongs_in_the_head_is_not_forwarded(name: str) -> None:
    kept: Fields = [(b"grpc-status", b"0", False), (b"x-checksum", b"1", True)]
    assert end_to_end_trailers([kept[0], (name.encode(), b"x", False), kept[1]]) == kept


@pytest.mark.parametrize(
    "name",
    [
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "digest",
        "etag",
        "authentication-info",
        "server-timing",
    ],
)
def test_any_other_trailer_is_forwarded(name: str) -> None:
    trailers: Fields = [(name.encode(), b"x", False)]
    assert end_to_end_trailers(trailers) == trailers


def test_host_replaces_a_missing_authority() -> None:
    host = (b"host", b"svc.example", False)
    assert request_authority([(b":path", b"/x", False), host]) == b"svc.example"
    assert request_authority([host, (b":authority", b"other.example", False)]) == b"other.example"
    assert request_authority([]) == b""

from __future__ import annotations

from proxy.downstream.fields import from_http1


def test_hop_by_hop_fields_are_removed() -> None:
    head = from_http1(
        b"POST",
        b"/greeter/x",
        [
            (b"Host", b"sidecar"),
            (b"Connection", b"keep-alive, X-Private"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Transfer-Encoding", b"chunked"),
            (b"X-Private", b"1"),
            (b"TE", b"gzip"),
            (b"Expect", b"100-continue"),
            (b"Upgrade", b"h2c"),
            (b"HTTP2-Settings", b"AAMAAABk"),
            (b"Authorization", b"Bearer the-caller's"),
            (b"X-Serverless-Authorization", b"Bearer spoofed"),
        ],
    )
    assert head == [
        (b":method", b"POST", False),
        (b":scheme", b"http", False),
        (b":authority", b"sidecar", False),
        (b":path", b"/greeter/x", False),
        (b"authorization", b"Bearer the-caller's", True),
        (b"x-serverless-authorization", b"Bearer spoofed", False),
    ]


def test_te_is_kept_only_with_the_value_trailers() -> None:
    assert (b"te", b"trailers", False) in from_http1(b"GET", b"/", [(b"te", b"trailers")])


def test_content_length_is_removed_beside_transfer_encoding() -> None:
    lines = [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")]
    assert b"content-length" not in [name for name, _, _ in from_http1(b"POST", b"/", lines)]
    assert (b"content-length", b"5", False) in from_http1(b"POST", b"/", lines[:1])

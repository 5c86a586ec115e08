"""Requests and their ends, the same for every parser (RFC 9112)."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.downstream.hosts import HostRules
from proxy.downstream.http1_syntax import RequestSyntax
from tests.unit.downstream.malformed import CHUNKED, FAULTS, GET, head

RULES = HostRules(("127.0.0.1", 9081), frozenset({"sidecar.example"}))


def syntax(max_head_octets: int = 1_024, rules: HostRules = RULES) -> RequestSyntax:
    return RequestSyntax(rules, max_head_octets)


each_fault = pytest.mark.parametrize(
    ("octets", "status"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)


@each_fault
def test_an_ambiguous_request_is_refused_and_nothing_after_it_is_returned(octets: bytes, status: int) -> None:
    checked = syntax()
    passed = checked.feed(octets)
    assert checked.fault is not None
    assert checked.fault.status == status, checked.fault
    assert passed in (b"", checked_prefix(octets))
    assert checked.feed(GET) == b""
    later = syntax()
    assert later.feed(GET + octets) == GET + passed, "it is refused behind another request, too"
    assert later.fault == checked.fault


@each_fault
def test_a_fault_is_found_in_data_of_any_fragmentation(octets: bytes, status: int) -> None:
    checked = syntax()
    for octet in octets:
        checked.feed(bytes((octet,)))
    assert checked.fault is not None
    assert checked.fault.status == status


def checked_prefix(octets: bytes) -> bytes:
    """Output that is permitted for a chunked request before its fault."""
    if not octets.startswith(CHUNKED):
        return b""
    passed = syntax().feed(octets)
    assert passed.startswith(syntax().feed(CHUNKED))
    return passed


@pytest.mark.parametrize(
    ("octets", "passed"),
    [
        (GET, GET),
        (b"\r\n\r\n" + GET, GET),
        (GET + b"\r\n" + GET, GET + GET),
        (head(b"X:\t y z \t"), head(b"X: y z")),
        (head(b"X:"), head(b"X: ")),
        (head("X: ä\tb".encode()), head("X: ä\tb".encode())),
        (head(b"Content-Length: 0"), head(b"Content-Length: 0")),
        (head(b"Content-Length: 2") + b"\n\0" + GET, head(b"Content-Length: 2") + b"\n\0" + GET),
        (head(b"Content-Length: 0002") + b"ab", head(b"Content-Length: 0002") + b"ab"),
        (head(b"Transfer-Encoding:\tChunked\t"), head(b"Transfer-Encoding: Chunked")),
        (CHUNKED + b"0\r\n\r\n" + GET, CHUNKED + b"0\r\n\r\n" + GET),
        (CHUNKED + b"00a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", CHUNKED + b"a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n"),
        (CHUNKED + b'2;a;b=c ; d = "e\\";f"\r\nab\r\n0;x\r\n\r\n', CHUNKED + b"2\r\nab\r\n0\r\n\r\n"),
        (CHUNKED + b"0\r\nX: y\r\nZ:\r\n\r\n" + GET, CHUNKED + b"0\r\n\r\n" + GET),
        (head(b"Upgrade: h2c", b"X: y"), head(b"X: y")),
        (b"get /g HTTP/1.1\r\nHost:\r\n\r\n", b"get /g HTTP/1.1\r\nHost: \r\n\r\n"),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"),
        (head(start=b"OPTIONS * HTTP/1.1"), head(start=b"OPTIONS * HTTP/1.1")),
        (head(start=b"CONNECT a:1 HTTP/1.1"), head(start=b"CONNECT a:1 HTTP/1.1")),
        (
            head(start=b"GET http://127.0.0.1:9081/g?a=http://b HTTP/1.1"),
            head(start=b"GET /g?a=http://b HTTP/1.1", host=b"host: 127.0.0.1:9081"),
        ),
        (
            head(start=b"GET HTTP://LocalHost HTTP/1.1"),
            head(start=b"GET / HTTP/1.1", host=b"host: LocalHost"),
        ),
        (
            head(start=b"GET http://sidecar.example:80?q HTTP/1.1", host=b"Host: sidecar.example"),
            head(start=b"GET /?q HTTP/1.1", host=b"host: sidecar.example:80"),
        ),
        (
            head(b"X: y", start=b"GET http://localhost/ HTTP/1.1"),
            head(b"X: y", start=b"GET / HTTP/1.1", host=b"host: localhost"),
        ),
        (
            head(start=b"GET http://[::1]:7/ HTTP/1.1", host=b"Host: [0:0::1]:7"),
            head(start=b"GET / HTTP/1.1", host=b"host: [::1]:7"),
        ),
    ],
)
def test_a_valid_request_is_returned_in_canonical_form(octets: bytes, passed: bytes) -> None:
    checked = syntax()
    assert checked.feed(octets) == passed
    assert checked.fault is None
    assert not checked.head_incomplete
    byte_by_byte = syntax()
    assert b"".join(byte_by_byte.feed(bytes((octet,))) for octet in octets) == passed


def test_the_size_of_a_head_is_that_of_target_names_and_values_and_32_octets_a_field() -> None:
    octets = len(b"/g/v") + len(b"Host" + b"localhost") + 32 + 10 * (1 + 20 + 32)
    large = head(*[b"X: " + b"y" * 20] * 10)
    assert syntax(octets).feed(large) == large
    checked = syntax(octets - 1)
    assert checked.feed(large) == b""
    assert checked.fault is not None
    assert checked.fault.status == 431


def test_small_chunks_that_came_together_are_joined() -> None:
    checked = syntax()
    large = bytes(2_000)
    chunks = CHUNKED + b"1\r\na\r\n" * 3 + b"7d0\r\n" + large + b"\r\n" + b"02;x=y\r\nbc\r\n" * 2
    assert checked.feed(chunks) == CHUNKED + b"3\r\naaa\r\n7d0\r\n" + large + b"\r\n" + b"4\r\nbcbc\r\n"
    assert checked.feed(b"1\r\nd\r\n0\r\n\r\n" + GET) == b"1\r\nd\r\n0\r\n\r\n" + GET
    assert checked.fault is None


def test_small_chunks_before_a_fault_are_not_lost() -> None:
    checked = syntax()
    assert checked.feed(CHUNKED + b"1\r\na\r\n1\r\nb\r\n1\r\ncd\r\n") == CHUNKED + b"2\r\nab\r\n1\r\nc"
    assert checked.fault is not None


def test_a_host_with_an_empty_port_is_well_formed() -> None:
    assert syntax().feed(head(host=b"Host: localhost:")) == head(host=b"Host: localhost:")


def test_off_loopback_an_absolute_target_is_accepted_if_host_is_the_same() -> None:
    rules = HostRules(("10.1.2.3", 9081))
    for name, well_formed in ((b"sidecar.prod.svc", True), (b"other", False)):
        checked = syntax(rules=rules)
        checked.feed(head(start=b"GET http://%s/g HTTP/1.1" % name, host=b"Host: sidecar.prod.svc"))
        assert (checked.fault is None) is well_formed
    checked = syntax(rules=rules)
    assert checked.feed(head(start=b"GET http://10.1.2.3:9081/g HTTP/1.1"))


@pytest.mark.parametrize(("octets", "amid"), [(b"", False), (b"\r\n", False), (b"G", True), (GET[:-1], True)])
def test_the_end_of_data_within_a_head_is_a_fault(octets: bytes, amid: bool) -> None:
    checked = syntax()
    checked.feed(octets)
    assert checked.head_incomplete is amid
    checked.feed_eof()
    assert (checked.fault is not None) is amid


def test_the_reason_never_quotes_the_request() -> None:
    for _, octets, _ in FAULTS:
        checked = syntax()
        checked.feed(octets.replace(b"other", b"secret").replace(b"X", b"secret"))
        assert checked.fault is not None
        assert "secret" not in checked.fault.text


TOKENS = st.text("abAB-_", min_size=1, max_size=5).map(str.encode)
CONTENT = st.binary(max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A well-formed request and its content."""
    lines = [
        draw(TOKENS) + b":" + draw(st.sampled_from([b"", b" ", b"\t "])) + draw(TOKENS)
        for _ in range(draw(st.integers(0, 3)))
    ]
    content = draw(CONTENT)
    lead = b"\r\n" * draw(st.integers(0, 2))
    if draw(st.booleans()):
        return lead + head(*lines, b"Content-Length: %d" % len(content)) + content, content
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=3)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    body = b"".join(b"%X;e\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return lead + head(b"Transfer-Encoding: chunked", *lines) + body + b"0\r\nT: t\r\n\r\n", content


@given(st.lists(requests(), min_size=1, max_size=4), st.data())
def test_another_parser_sees_the_same_requests_in_any_fragmentation(
    many: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """h11 is the other parser: it finds the same requests in the output."""
    octets = b"".join(request for request, _ in many)
    checked = syntax(1 << 16)
    passed = b""
    while octets:
        size = data.draw(st.integers(1, len(octets)))
        passed += checked.feed(octets[:size])
        octets = octets[size:]
    assert checked.fault is None
    seen = []
    other = h11.Connection(h11.SERVER)
    other.receive_data(passed)
    for _ in many:
        content = b""
        while not isinstance(event := other.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA
            if isinstance(event, h11.Data):
                content += bytes(event.data)
        seen.append(content)
        other.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
        other.send(h11.EndOfMessage())
        other.start_next_cycle()
    assert seen == [content for _, content in many]
    assert other.trailing_data == (b"", False)


@given(
    st.lists(
        st.sampled_from(
            [
                b"\r",
                b"\n",
                b"\r\n",
                b" ",
                b":",
                b"0",
                b"5",
                b";",
                b"a",
                b"X: y",
                b"\0",
                b"Content-Length: 1",
                b"Transfer-Encoding: chunked",
                b"Host: localhost",
                b"GET / HTTP/1.1",
                b"POST http://localhost/ HTTP/1.1",
            ]
        ),
        max_size=30,
    )
)
def test_fragmentation_changes_nothing_and_h11_parses_the_result(parts: list[bytes]) -> None:
    octets = b"".join(parts)
    at_once, in_pieces = syntax(), syntax()
    passed = at_once.feed(octets)
    assert b"".join(in_pieces.feed(bytes((octet,))) for octet in octets) == passed
    assert (at_once.fault is None) == (in_pieces.fault is None)
    other = h11.Connection(h11.SERVER)
    if passed:
        other.receive_data(passed)
    while (event := other.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        assert event

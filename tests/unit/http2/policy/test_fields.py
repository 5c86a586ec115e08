from __future__ import annotations

import pytest

from proxy.http2.events import FieldLine, Fields
from proxy.http2.policy.fields import (
    CONNECTION_SPECIFIC,
    Malformed,
    ResponseHead,
    check_request,
    check_response,
    check_sendable,
    check_trailers,
)


def line(name: bytes, value: bytes) -> FieldLine:
    return name, value, False


REQUEST: Fields = [
    line(b":method", b"POST"),
    line(b":scheme", b"https"),
    line(b":authority", b"a.internal"),
    line(b":path", b"/invoke"),
]


def request(**changed: bytes | None) -> Fields:
    """A request head with pseudo-fields replaced, or left out where None."""
    new = {f":{name}".encode(): value for name, value in changed.items()}
    fields: Fields = []
    for name, value, _ in REQUEST:
        replaced = new.get(name, value)
        if replaced is not None:
            fields.append(line(name, replaced))
    return fields


@pytest.mark.parametrize(("value", "length"), [(b"0", 0), (b"12", 12), (b"0007", 7), (b"9" * 18, 10**18 - 1)])
def test_the_content_length_of_a_request_is_returned(value: bytes, length: int) -> None:
    assert check_request([*REQUEST, line(b"content-length", value)]) == length


def test_a_request_without_content_length_has_none() -> None:
    assert check_request(REQUEST) is None


@pytest.mark.parametrize("value", [b"", b"1,1", b"+1", b" 1", b"1 ", b"0x1", b"9" * 19, b"9" * 5_000, "٣".encode()])
def test_an_invalid_content_length_is_malformed(value: bytes) -> None:
    with pytest.raises(Malformed):
        check_request([*REQUEST, line(b"content-length", value)])


@pytest.mark.parametrize("again", [b"5", b"6"])
def test_repeated_content_lengths_are_malformed(again: bytes) -> None:
    with pytest.raises(Malformed, match="twice"):
        check_request([*REQUEST, line(b"content-length", b"5"), line(b"content-length", again)])


@pytest.mark.parametrize("path", [b"/", b"/a?b=c#d", b"/caf\xc3\xa9", b"//x", b"/%2e%2e/"])
def test_any_path_of_the_right_form_is_accepted(path: bytes) -> None:
    check_request(request(path=path))


@pytest.mark.parametrize("path", [None, b"", b"a", b"*", b"http://a/", b"/a b", b"/a\x01", b"/a\x7f", b" /a"])
def test_an_invalid_path_is_malformed(path: bytes | None) -> None:
    with pytest.raises(Malformed):
        check_request(request(path=path))


def test_options_may_have_an_asterisk_as_its_path() -> None:
    check_request(request(method=b"OPTIONS", path=b"*"))


@pytest.mark.parametrize("authority", [b"a", b"a:80", b"[::1]:80", b"A.internal"])
def test_an_authority_of_any_host_is_accepted(authority: bytes) -> None:
    check_request(request(authority=authority))


@pytest.mark.parametrize("authority", [b"", b"user@a", b"a b"])
def test_an_authority_without_a_host_is_malformed(authority: bytes) -> None:
    with pytest.raises(Malformed, match="authority"):
        check_request(request(authority=authority))


def test_host_must_equal_the_authority_or_replace_it() -> None:
    check_request([*REQUEST, line(b"host", b"A.Internal")])
    check_request([*request(authority=None), line(b"host", b"a.internal")])
    with pytest.raises(Malformed, match="host"):
        check_request([*REQUEST, line(b"host", b"b.internal")])
    with pytest.raises(Malformed, match="twice"):
        check_request([*REQUEST, line(b"host", b"a.internal"), line(b"host", b"a.internal")])
    with pytest.raises(Malformed, match="authority"):
        check_request(request(authority=None))
    with pytest.raises(Malformed, match="authority"):
        check_request([*request(authority=None), line(b"host", b"")])


def test_connect_has_only_an_authority() -> None:
    assert check_request([line(b":method", b"CONNECT"), line(b":authority", b"a:443")]) is None
    for fields in (request(method=b"CONNECT"), request(method=b"CONNECT", path=None), [line(b":method", b"CONNECT")]):
        with pytest.raises(Malformed, match="CONNECT"):
            check_request(fields)


@pytest.mark.parametrize("method", [None, b"", b"GE T", b"G(T", b"GET/x", b"G\x80T"])
def test_an_invalid_method_is_malformed(method: bytes | None) -> None:
    with pytest.raises(Malformed, match="method"):
        check_request(request(method=method))


@pytest.mark.parametrize("scheme", [None, b""])
def test_an_invalid_scheme_is_malformed(scheme: bytes | None) -> None:
    with pytest.raises(Malformed, match="scheme"):
        check_request(request(scheme=scheme))


@pytest.mark.parametrize("value", [b"trailers", b"Trailers"])
def test_te_may_be_trailers(value: bytes) -> None:
    check_request([*REQUEST, line(b"te", value)])


@pytest.mark.parametrize("lines", [[b"gzip"], [b""], [b"trailers", b"deflate"], [b"trailers;q=1"]])
def test_any_other_te_is_malformed(lines: list[bytes]) -> None:
    with pytest.raises(Malformed, match="te"):
        check_request([*REQUEST, *(line(b"te", value) for value in lines)])


@pytest.mark.parametrize("value", [b"a\0", b"\ra", b"a\nb", b"\r\n", b"\x01", b"a\x08", b"\v", b"\x1fa", b"a\x7fb"])
def test_values_must_not_have_control_characters(value: bytes) -> None:
    for place in range(3):
        fields = [line(b"x-a", b"fine"), line(b"x-b", b"fine"), line(b"x-c", b"fine")]
        fields[place] = line(b"x-bad", value)
        with pytest.raises(Malformed, match="control character"):
            check_request([*REQUEST, *fields])


@pytest.mark.parametrize("value", [b" a", b"a ", b"\ta", b"a\t", b" ", b"\t\t"])
def test_values_must_not_have_white_space_at_their_ends(value: bytes) -> None:
    with pytest.raises(Malformed, match="white space"):
        check_request([*REQUEST, line(b"x", value), line(b"y", b"z")])


@pytest.mark.parametrize("value", [b"", b"a b", b"a\tb", b"~", b"\xff\x80"])
def test_any_other_value_is_accepted(value: bytes) -> None:
    check_request([*REQUEST, line(b"x", value)])


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ([REQUEST[0], line(b"x", b"y"), *REQUEST[1:]], "after a regular field"),
        ([line(b"x", b"y"), *REQUEST], "after a regular field"),
        ([*REQUEST[:1], *REQUEST], "twice"),
        ([*REQUEST, line(b":status", b"200")], "unknown"),
        ([*REQUEST, line(b":", b"")], "unknown"),
    ],
)
def test_pseudo_fields_come_first_and_once(fields: Fields, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        check_request(fields)


def test_a_response_has_no_pseudo_fields_of_a_request() -> None:
    with pytest.raises(Malformed, match="unknown"):
        check_response(REQUEST, to_head=False)


def test_a_response_head_says_whether_it_is_interim_and_how_much_content_is_due() -> None:
    length = line(b"content-length", b"7")
    assert check_response([line(b":status", b"100")], to_head=False) == ResponseHead(True, None)
    assert check_response([line(b":status", b"103"), length], to_head=True) == ResponseHead(True, None)
    assert check_response([line(b":status", b"200")], to_head=False) == ResponseHead(False, None)
    assert check_response([line(b":status", b"200"), length], to_head=False) == ResponseHead(False, 7)
    assert check_response([line(b":status", b"200"), length], to_head=True) == ResponseHead(False, 0)
    assert check_response([line(b":status", b"304"), length], to_head=False) == ResponseHead(False, 0)
    assert check_response([line(b":status", b"204")], to_head=False) == ResponseHead(False, 0)
    assert check_response([line(b":status", b"999")], to_head=False) == ResponseHead(False, None)


@pytest.mark.parametrize("status", [b"", b"20", b"2000", b"abc", b"099", b"+20", b"101"])
def test_an_invalid_status_is_malformed(status: bytes) -> None:
    with pytest.raises(Malformed, match="status"):
        check_response([line(b":status", status)], to_head=False)


def test_a_head_that_ends_its_stream_announces_no_content() -> None:
    for value in (b"0", b"00"):
        assert check_request([*REQUEST, line(b"content-length", value)], ends=True) == 0
    with pytest.raises(Malformed, match="none follows"):
        check_request([*REQUEST, line(b"content-length", b"7")], ends=True)
    seven = [line(b":status", b"200"), line(b"content-length", b"7")]
    assert check_response(seven, to_head=True, ends=True) == ResponseHead(False, 0)
    with pytest.raises(Malformed, match="none follows"):
        check_response(seven, to_head=False, ends=True)


def test_an_interim_response_does_not_end_its_stream() -> None:
    with pytest.raises(Malformed, match="interim"):
        check_response([line(b":status", b"100")], to_head=False, ends=True)


def test_trailers_must_end_their_stream() -> None:
    with pytest.raises(Malformed, match="does not end"):
        check_trailers([line(b"grpc-status", b"0")], ends=False)


def test_trailers_may_be_empty_and_have_no_pseudo_fields() -> None:
    check_trailers([])
    check_trailers([line(b"grpc-status", b"0")])
    with pytest.raises(Malformed, match="unknown"):
        check_trailers([line(b":status", b"200")])


def test_the_reason_never_quotes_a_field() -> None:
    secret = b"s3cr3t"
    for fields in (
        [*REQUEST, line(b"x", b" " + secret)],
        [*REQUEST, line(b"content-length", secret)],
        [*REQUEST, line(b"te", secret)],
        [*REQUEST, line(secret.upper(), b"")],
        [*REQUEST, line(b"host", secret)],
    ):
        with pytest.raises(Malformed) as raised:
            check_request(fields)
        assert secret.decode() not in str(raised.value).lower()


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("x", b"y", False)],
        [(b"x", "y", False)],
        [(b"x", None, False)],
        [(b"x", bytearray(b"y"), False)],
        [(b"x", b"y")],
        [line(b"X", b"y")],
        [line(b"x\n", b"y")],
        [line(b"x", b"y\rz")],
        [line(b"x", b"y\nz: 1")],
        [line(b"x", b"\0")],
    ],
)
def test_fields_that_a_peer_would_refuse_are_not_sendable(fields: Fields) -> None:
    with pytest.raises(ValueError, match="field"):
        check_sendable(fields)


def test_fields_that_were_accepted_are_sendable() -> None:
    check_sendable([*REQUEST, line(b"x", b""), (b"authorization", b"a  b", True)])
    check_sendable([line(b"1", b"names need no letters (RFC 9110, 5.6.2)")])


@pytest.mark.parametrize("name", [b"", b"Upper-Case", b"a b", b"caf\xc3\xa9"])
def test_a_field_name_must_be_a_lower_case_token(name: bytes) -> None:
    with pytest.raises(Malformed, match="field name"):
        check_request([*REQUEST, line(name, b"1")])


@pytest.mark.parametrize("name", sorted(CONNECTION_SPECIFIC))
def test_a_connection_specific_field_is_malformed(name: bytes) -> None:
    with pytest.raises(Malformed, match="connection-specific"):
        check_request([*REQUEST, line(name, b"1")])

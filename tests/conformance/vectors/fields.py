"""Field sections, and the rule that refuses each: None where it is well formed (RFC 9113, 8.1 to 8.3)."""

from __future__ import annotations

from typing import NamedTuple

from proxy.http2.events import Fields

__all__ = ["REQUESTS", "RESPONSES", "TRAILERS", "Vector"]


class Vector(NamedTuple):
    """One section."""

    name: str
    fields: Fields
    reason: str | None = None
    end: bool = False
    """It ends its stream."""


def _lines(*lines: tuple[bytes, bytes]) -> Fields:
    return [(name, value, False) for name, value in lines]


_METHOD, _SCHEME = (b":method", b"POST"), (b":scheme", b"http")
_AUTHORITY, _PATH = (b":authority", b"a.internal"), (b":path", b"/invoke")
_HEAD = (_METHOD, _SCHEME, _AUTHORITY, _PATH)


def _request(name: str, *more: tuple[bytes, bytes], reason: str | None = None, end: bool = False) -> Vector:
    return Vector(name, _lines(*_HEAD, *more), reason, end)


def _authority(authority: bytes | None, host: bytes | None, reason: str | None) -> Vector:
    lines = [_METHOD, _SCHEME, _PATH]
    if authority is not None:
        lines.insert(2, (b":authority", authority))
    if host is not None:
        lines.append((b"host", host))
    return Vector(f"authority {authority!r}, host {host!r}", _lines(*lines), reason)


REQUESTS = [
    _request("plain"),
    _request("plain, ended", end=True),
    _request("empty value", (b"x-empty", b"")),
    _request("octets above ASCII in a value", (b"x-obs", b"caf\xe9 \xff")),
    _request("white space within a value", (b"x-inner", b"a  b\tc")),
    _request("te: trailers", (b"te", b"trailers")),
    _request("te: Trailers", (b"te", b"Trailers")),
    Vector("OPTIONS *", _lines((b":method", b"OPTIONS"), _SCHEME, _AUTHORITY, (b":path", b"*"))),
    Vector("CONNECT", _lines((b":method", b"CONNECT"), (b":authority", b"a.internal:443"))),
    # pseudo-fields
    Vector("no method", _lines(_SCHEME, _AUTHORITY, _PATH), "pseudo-field"),
    Vector("no scheme", _lines(_METHOD, _AUTHORITY, _PATH), "pseudo-field"),
    Vector("no path", _lines(_METHOD, _SCHEME, _AUTHORITY), "pseudo-field"),
    Vector("empty method", _lines((b":method", b""), _SCHEME, _AUTHORITY, _PATH), "pseudo-field"),
    Vector("space in the method", _lines((b":method", b"P OST"), _SCHEME, _AUTHORITY, _PATH), "pseudo-field"),
    Vector("empty scheme", _lines(_METHOD, (b":scheme", b""), _AUTHORITY, _PATH), "pseudo-field"),
    Vector("empty path", _lines(_METHOD, _SCHEME, _AUTHORITY, (b":path", b"")), "pseudo-field"),
    Vector("path without slash", _lines(_METHOD, _SCHEME, _AUTHORITY, (b":path", b"invoke")), "pseudo-field"),
    Vector("space in the path", _lines(_METHOD, _SCHEME, _AUTHORITY, (b":path", b"/a b")), "pseudo-field"),
    Vector("POST *", _lines(_METHOD, _SCHEME, _AUTHORITY, (b":path", b"*")), "pseudo-field"),
    Vector(
        "OPTIONS of no path", _lines((b":method", b"OPTIONS"), _SCHEME, _AUTHORITY, (b":path", b"x")), "pseudo-field"
    ),
    Vector("method in lower case", _lines((b":method", b"m-search"), *_HEAD[1:])),
    Vector("method that is no token", _lines((b":method", b"GET/"), *_HEAD[1:]), "pseudo-field"),
    Vector("method beyond ASCII", _lines((b":method", b"G\xc9T"), *_HEAD[1:]), "pseudo-field"),
    Vector("method twice", _lines(_METHOD, *_HEAD), "field"),
    Vector("path twice", _lines(*_HEAD, _PATH), "field"),
    Vector("authority twice", _lines(_METHOD, _SCHEME, _AUTHORITY, _AUTHORITY, _PATH), "field"),
    _request("unknown pseudo-field", (b":colour", b"red"), reason="field"),
    _request("protocol without leave", (b":protocol", b"websocket"), reason="field"),
    _request("a response's pseudo-field", (b":status", b"200"), reason="field"),
    Vector("pseudo-field after a field", _lines(_METHOD, _SCHEME, (b"accept", b"*/*"), _AUTHORITY, _PATH), "field"),
    Vector(
        "CONNECT with a path",
        _lines((b":method", b"CONNECT"), (b":authority", b"a.internal:443"), _PATH),
        "pseudo-field",
    ),
    Vector("CONNECT to nowhere", _lines((b":method", b"CONNECT")), "pseudo-field"),
    # authority and host
    _authority(None, b"a.internal", None),
    _authority(b"a.internal", b"A.Internal", None),
    _authority(b"[::1]:9080", None, None),
    _authority(None, None, "authority"),
    _authority(b"", None, "authority"),
    _authority(None, b"", "authority"),
    _authority(b"a b", None, "authority"),
    _authority(b"user@a.internal", None, "user-info"),
    _authority(b"user:word@a.internal", b"user:word@a.internal", "user-info"),
    _authority(None, b"user@a.internal", "user-info"),
    _authority(b"a.internal", b"b.internal", "host-differs"),
    _authority(b"a.internal", b"a.internal:80", "host-differs"),
    _request("host twice", (b"host", b"a.internal"), (b"host", b"a.internal"), reason="field"),
    # names and values
    _request("upper case", (b"Accept", b"*/*"), reason="field"),
    _request("empty name", (b"", b"x"), reason="field"),
    _request("space in a name", (b"a b", b"x"), reason="field"),
    _request("colon in a name", (b"a:b", b"x"), reason="field"),
    _request("line break in a name", (b"a\nb", b"x"), reason="field"),
    _request("octet above ASCII in a name", (b"caf\xe9", b"x"), reason="field"),
    _request("NUL in a value", (b"x", b"a\0b"), reason="field"),
    _request("CR in a value", (b"x", b"a\rb"), reason="field"),
    _request("LF in a value", (b"x", b"a\nb"), reason="field"),
    *(_request(f"{mark!r} in a value", (b"x", b"a%cb" % mark), reason="field") for mark in b"\x01\x08\v\f\x1f\x7f"),
    _request("tab in a value", (b"x", b"a\tb")),
    _request("space before a value", (b"x", b" a"), reason="field"),
    _request("tab after a value", (b"x", b"a\t"), reason="field"),
    # fields of HTTP/1.1's connections
    _request("connection", (b"connection", b"close"), reason="field"),
    _request("keep-alive", (b"keep-alive", b"5"), reason="field"),
    _request("proxy-connection", (b"proxy-connection", b"close"), reason="field"),
    _request("transfer-encoding", (b"transfer-encoding", b"chunked"), reason="field"),
    _request("upgrade", (b"upgrade", b"h2c"), reason="field"),
    _request("te: gzip", (b"te", b"gzip"), reason="field"),
    _request("te: trailers, gzip", (b"te", b"trailers, gzip"), reason="field"),
    # content-length
    _request("content-length", (b"content-length", b"5")),
    _request("content-length of 18 digits", (b"content-length", b"9" * 18)),
    _request("content-length 0, ended", (b"content-length", b"0"), end=True),
    _request("content-length that is none", (b"content-length", b"1x"), reason="content-length"),
    _request("empty content-length", (b"content-length", b""), reason="content-length"),
    _request("content-length below nought", (b"content-length", b"-1"), reason="content-length"),
    _request("content-length of 19 digits", (b"content-length", b"1" * 19), reason="content-length"),
    _request("equal content-lengths", (b"content-length", b"1"), (b"content-length", b"1"), reason="field"),
    _request("two content-lengths", (b"content-length", b"1"), (b"content-length", b"2"), reason="field"),
    _request("content announced, and none follows", (b"content-length", b"5"), reason="content-length", end=True),
]

_STATUS = (b":status", b"200")

RESPONSES = [
    Vector("plain", _lines(_STATUS, (b"server", b"a"))),
    Vector("plain, ended", _lines(_STATUS), end=True),
    Vector("no content", _lines((b":status", b"204")), end=True),
    Vector("not modified, with a length", _lines((b":status", b"304"), (b"content-length", b"5")), end=True),
    Vector("an unknown status", _lines((b":status", b"999"))),
    Vector("interim", _lines((b":status", b"103"), (b"link", b"</a>"))),
    Vector("interim, ended", _lines((b":status", b"103")), "stream-order", end=True),
    Vector(
        "interim, content-length that is none",
        _lines((b":status", b"103"), (b"content-length", b"x")),
        "content-length",
    ),
    Vector("nothing", [], "pseudo-field"),
    Vector("no status", _lines((b"server", b"a")), "pseudo-field"),
    Vector("status twice", _lines(_STATUS, _STATUS), "field"),
    Vector("status of two digits", _lines((b":status", b"20")), "pseudo-field"),
    Vector("status of four digits", _lines((b":status", b"2000")), "pseudo-field"),
    Vector("status below 100", _lines((b":status", b"099")), "pseudo-field"),
    Vector("status that is no number", _lines((b":status", b"2xx")), "pseudo-field"),
    Vector("switching protocols", _lines((b":status", b"101")), "pseudo-field"),
    Vector("a request's pseudo-field", _lines(_STATUS, _PATH), "field"),
    Vector("status after a field", _lines((b"server", b"a"), _STATUS), "field"),
    Vector("upper case", _lines(_STATUS, (b"Server", b"a")), "field"),
    Vector("LF in a value", _lines(_STATUS, (b"server", b"a\nb")), "field"),
    Vector("control character in a value", _lines(_STATUS, (b"server", b"a\x01b")), "field"),
    Vector("connection", _lines(_STATUS, (b"connection", b"close")), "field"),
    Vector("transfer-encoding", _lines(_STATUS, (b"transfer-encoding", b"chunked")), "field"),
    Vector("content-length that is none", _lines(_STATUS, (b"content-length", b"")), "content-length"),
    Vector("content announced, and none follows", _lines(_STATUS, (b"content-length", b"5")), "content-length", True),
]

TRAILERS = [
    Vector("plain", _lines((b"grpc-status", b"0")), end=True),
    Vector("empty", [], end=True),
    Vector("not the end", _lines((b"grpc-status", b"0")), "stream-order"),
    Vector("pseudo-field", _lines(_STATUS), "field", end=True),
    Vector("upper case", _lines((b"Grpc-Status", b"0")), "field", end=True),
    Vector("LF in a value", _lines((b"x", b"a\nb")), "field", end=True),
    Vector("control character in a value", _lines((b"x", b"a\x7fb")), "field", end=True),
    Vector("connection", _lines((b"connection", b"close")), "field", end=True),
]

# What follows a fault does not mend it.
for vectors in (REQUESTS, RESPONSES, TRAILERS):
    vectors += [
        Vector(f"{each.name}, before a good field", [*each.fields, (b"x-good", b"1", False)], each.reason, each.end)
        for each in vectors
        if each.reason is not None
    ]

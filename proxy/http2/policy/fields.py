"""Whether a field section is well formed (RFC 9113, 8.1 to 8.3).

What depends on names alone (which pseudo-fields, their order, forbidden fields) is worked out once per sequence of
names and kept, because a peer's heads hardly differ in them; what depends on values is looked at every time, all
values at once where that will do.

Three rules are stricter than RFC 9113, against request smuggling: `host` must agree with
`:authority`, repeated `content-length` and `host` are refused even when equal, and `:path` has visible octets only.
Two are those of RFC 9110, 5.5 and 9.1, for the sake of the others on a connection: no value has a control character but
HTAB, and `:method` is a token. Envoy and hyper end a connection, with all its streams, on which such a field comes.

Each rule that refuses a section has one of the words in `refusals`, by which metrics count. No text here quotes a
value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from proxy.http2.events import ErrorCode, Fields
from proxy.http2.policy import refusals
from proxy.http2.policy.faults import StreamFault

__all__ = [
    "CONNECTION_SPECIFIC",
    "Malformed",
    "ResponseHead",
    "check_request",
    "check_response",
    "check_sendable",
    "check_trailers",
    "section_octets",
]

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
"""A token without upper case (RFC 9110, 5.6.2; RFC 9113, 8.2.1)."""
CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
"""Names of fields that HTTP/2 forbids (RFC 9113, 8.2.2)."""
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROLS: Final = bytes(octet for octet in range(0x80) if (octet < 0x20 and octet != 0x09) or octet == 0x7F)
_VISIBLE: Final = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))
_MOST_LENGTH_DIGITS: Final = 18
_MOST_SHAPES: Final = 512
_MOST_OCTETS_OF_NAMES: Final = 4_096
"""Of a shape that is kept: what peers send must not decide how much memory we use."""
_NAME_OCTETS: Final = 48
"""What Python takes for a name beside its octets."""


class Malformed(StreamFault):
    """The section breaks a rule of RFC 9113, 8; its stream is to be reset with PROTOCOL_ERROR (8.1.1)."""

    def __init__(self, text: str, reason: str = refusals.FIELD) -> None:
        super().__init__(ErrorCode.PROTOCOL_ERROR, reason)
        self.args = (text,)  # the rule, without any value


class ResponseHead(NamedTuple):
    """What matters of a response head to the frames that follow it."""

    interim: bool
    """True for a 1xx head."""
    content_length: int | None
    """Octets of content announced, 0 where there can be none, None where it is open."""


class _Shape(NamedTuple):
    """What the names of a section say: a fault, and where the fields are whose values matter (-1: nowhere)."""

    fault: str | None
    method: int
    scheme: int
    authority: int
    path: int
    status: int
    host: int
    content_length: int
    te: tuple[int, ...]


class _Shapes:
    """The shapes of one kind of section that were seen before."""

    __slots__ = ("_kept", "_pseudo")

    def __init__(self, pseudo: Iterable[bytes] = ()) -> None:
        self._pseudo = frozenset(pseudo)
        self._kept: dict[tuple[bytes, ...], _Shape] = {}

    def of(self, names: tuple[bytes, ...]) -> _Shape:
        shape = self._kept.get(names)
        if shape is None:
            shape = _shape(names, self._pseudo)
            if sum(map(len, names)) + _NAME_OCTETS * len(names) <= _MOST_OCTETS_OF_NAMES:
                if len(self._kept) >= _MOST_SHAPES:
                    self._kept.clear()
                self._kept[names] = shape
        return shape


_REQUESTS: Final = _Shapes((b":method", b":scheme", b":authority", b":path"))
_RESPONSES: Final = _Shapes((b":status",))
_TRAILERS: Final = _Shapes()


def check_request(fields: Fields, *, ends: bool = False) -> int | None:
    """Return the content length that a request head announces, None if it does not; raises Malformed.

    `ends`: the head ends its stream, so that no content may be announced. CONNECT without `:scheme` and `:path` is well
    formed (RFC 9113, 8.5) and announces nothing.
    """
    shape = _checked(fields, _REQUESTS)
    method, scheme = _value(fields, shape.method), _value(fields, shape.scheme)
    authority, path = _value(fields, shape.authority), _value(fields, shape.path)
    if not method or not _METHOD.fullmatch(method):
        raise Malformed("a :method that is missing or no token", refusals.PSEUDO_FIELD)
    if method == b"CONNECT":
        if scheme is not None or path is not None:
            raise Malformed("CONNECT with :scheme or :path", refusals.PSEUDO_FIELD)
        if not authority:
            raise Malformed("CONNECT without :authority", refusals.PSEUDO_FIELD)
        return None
    if not scheme:
        raise Malformed("no :scheme", refusals.PSEUDO_FIELD)
    if not path or not _is_visible(path) or not (path[0] == 0x2F or (path == b"*" and method == b"OPTIONS")):
        raise Malformed("a :path that is missing, empty or no path", refusals.PSEUDO_FIELD)
    _check_authority(authority, _value(fields, shape.host))
    return _content_length(fields, shape, ends=ends)


def check_response(fields: Fields, *, to_head: bool, ends: bool = False) -> ResponseHead:
    """Return what a response head says; raises Malformed. `to_head`: it answers a HEAD request."""
    shape = _checked(fields, _RESPONSES)
    status = _value(fields, shape.status)
    if status is None or len(status) != 3 or not status.isdigit() or status[:1] == b"0" or status == b"101":
        raise Malformed("a :status that is missing, not three digits or not for HTTP/2", refusals.PSEUDO_FIELD)
    if status[:1] == b"1":
        _content_length(fields, shape, ends=False)
        if ends:
            raise Malformed("an interim response that ends its stream", refusals.STREAM_ORDER)
        return ResponseHead(True, None)
    # RFC 9110, 6.4.1: no content, whatever content-length says.
    has_no_content = to_head or status in (b"204", b"304")
    length = _content_length(fields, shape, ends=ends and not has_no_content)
    return ResponseHead(False, 0 if has_no_content else length)


def check_trailers(fields: Fields, *, ends: bool = True) -> None:
    """Raise Malformed unless this is a trailer section: no pseudo-fields (RFC 9113, 8.1); it may be empty."""
    _checked(fields, _TRAILERS)
    if not ends:
        raise Malformed("a trailer section that does not end its stream", refusals.STREAM_ORDER)


def check_sendable(fields: Fields) -> None:
    """Raise ValueError if these fields could break the field compression or the message on their way out.

    Sections come from validated input; this guards against a defect of ours, before the compressor has seen anything.
    """
    try:
        names = b"".join([name for name, _, _ in fields])
        text = b"".join([value for _, value, _ in fields]) + names
        hash(tuple(fields))
    except (TypeError, ValueError):
        raise ValueError("each field must be a tuple of two bytes and a bool") from None
    if b"\r" in text or b"\n" in text or b"\0" in text or not names or names != names.lower():
        raise ValueError("fields that must not be sent: none at all, upper case in names, or CR, LF or NUL")


# ---- names


def _shape(names: tuple[bytes, ...], pseudo: frozenset[bytes]) -> _Shape:
    places: dict[bytes, int] = {}
    te: list[int] = []
    fault: str | None = None
    regular = False
    for place, name in enumerate(names):
        if name.startswith(b":"):
            if name not in pseudo:
                fault = "a pseudo-field that is unknown here"
            elif regular:
                fault = "a pseudo-field after a regular field"
            elif name in places:
                fault = "a pseudo-field twice"
        else:
            regular = True
            fault = _name_fault(name, places) or fault
        places[name] = place
        if name == b"te":
            te.append(place)
    return _Shape(
        fault,
        method=places.get(b":method", -1),
        scheme=places.get(b":scheme", -1),
        authority=places.get(b":authority", -1),
        path=places.get(b":path", -1),
        status=places.get(b":status", -1),
        host=places.get(b"host", -1),
        content_length=places.get(b"content-length", -1),
        te=tuple(te),
    )


def _name_fault(name: bytes, before: dict[bytes, int]) -> str | None:
    if not _NAME.fullmatch(name):
        return "a field name that is empty, has upper case or is no token"
    if name in CONNECTION_SPECIFIC:
        return "a connection-specific field"
    if name in (b"content-length", b"host") and name in before:
        return f"{name.decode()} twice"
    return None


# ---- values


def _checked(fields: Fields, shapes: _Shapes) -> _Shape:
    shape = shapes.of(tuple([field[0] for field in fields]))
    if shape.fault is not None:
        raise Malformed(shape.fault)
    _check_values([field[1] for field in fields])
    for place in shape.te:
        if fields[place][1].lower() != b"trailers":
            raise Malformed("te other than trailers")
    return shape


def _check_values(values: list[bytes]) -> None:
    """RFC 9110, 5.5: no control character but HTAB; RFC 9113, 8.2.1: no white space at either end."""
    text = b"".join(values)
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise Malformed("a field value with a control character")
    if [value for value in values if value != value.strip(b" \t")]:
        raise Malformed("a field value that starts or ends with white space")


def _check_authority(authority: bytes | None, host: bytes | None) -> None:
    """RFC 9113, 8.3.1: one of the two at least; not empty, no user information, not contradicting each other."""
    named = host if authority is None else authority
    if not named or not _is_visible(named):
        raise Malformed("an authority that is missing, empty or no host", refusals.AUTHORITY)
    if b"@" in named:
        raise Malformed("an authority with user information", refusals.USER_INFO)
    if host is not None and host.lower() != named.lower():
        raise Malformed("host is not :authority", refusals.HOST_DIFFERS)


def _content_length(fields: Fields, shape: _Shape, *, ends: bool) -> int | None:
    value = _value(fields, shape.content_length)
    if value is None:
        return None
    if not value.isdigit() or len(value) > _MOST_LENGTH_DIGITS:
        raise Malformed("a content-length that is no length", refusals.CONTENT_LENGTH)
    length = int(value)
    if ends and length:
        raise Malformed("content was announced and none follows", refusals.CONTENT_LENGTH)
    return length


def _value(fields: Fields, place: int) -> bytes | None:
    return fields[place][1] if place >= 0 else None


def _is_visible(text: bytes) -> bool:
    return not text.translate(None, _VISIBLE)


def section_octets(fields: Fields) -> int:
    """Return the size of a field section (RFC 9113, 6.5.2): names, values, and 32 octets a line."""
    return sum(len(name) + len(value) + 32 for name, value, _ in fields)

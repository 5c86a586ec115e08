"""Whether a field section is well formed (RFC 9113, 8.1 to 8.3).

Three rules are stricter than RFC 9113, against request smuggling: `host` must agree with
`:authority`, repeated `content-length` and `host` are refused even when equal, and `:path` has visible octets only.
Two are those of RFC 9110, 5.5 and 9.1, for the sake of the others on a connection: no value has a control character but
HTAB, and `:method` is a token. Envoy and hyper end a connection, with all its streams, on which such a field comes.

Each rule that refuses a section has one of the words in `refusals`, by which metrics count. No text here quotes a
value.
"""

from __future__ import annotations

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

_IN_NAMES: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
"""The octets of a token, without upper case (RFC 9110, 5.6.2; RFC 9113, 8.2.1)."""
CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
"""Names of fields that HTTP/2 forbids (RFC 9113, 8.2.2)."""
_CONTROLS: Final = bytes(octet for octet in range(0x80) if (octet < 0x20 and octet != 0x09) or octet == 0x7F)
_VISIBLE: Final = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))
_MOST_LENGTH_DIGITS: Final = 18


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


_OF_REQUESTS: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
_OF_RESPONSES: Final = frozenset((b":status",))
_OF_TRAILERS: Final[frozenset[bytes]] = frozenset()


def check_request(fields: Fields, *, ends: bool = False) -> int | None:
    """Return the content length that a request head announces, None if it does not; raises Malformed.

    `ends`: the head ends its stream, so that no content may be announced. CONNECT without `:scheme` and `:path` is well
    formed (RFC 9113, 8.5) and announces nothing.
    """
    values = _checked(fields, _OF_REQUESTS)
    method, scheme, path = values.get(b":method"), values.get(b":scheme"), values.get(b":path")
    if not method or method.lower().translate(None, _IN_NAMES):
        raise Malformed("a :method that is missing or no token", refusals.PSEUDO_FIELD)
    if method == b"CONNECT":
        if scheme is not None or path is not None:
            raise Malformed("CONNECT with :scheme or :path", refusals.PSEUDO_FIELD)
        if not values.get(b":authority"):
            raise Malformed("CONNECT without :authority", refusals.PSEUDO_FIELD)
        return None
    if not scheme:
        raise Malformed("no :scheme", refusals.PSEUDO_FIELD)
    if not path or not _is_visible(path) or not (path[0] == 0x2F or (path == b"*" and method == b"OPTIONS")):
        raise Malformed("a :path that is missing, empty or no path", refusals.PSEUDO_FIELD)
    _check_authority(values.get(b":authority"), values.get(b"host"))
    return _content_length(values, ends=ends)


def check_response(fields: Fields, *, to_head: bool, ends: bool = False) -> ResponseHead:
    """Return what a response head says; raises Malformed. `to_head`: it answers a HEAD request."""
    values = _checked(fields, _OF_RESPONSES)
    status = values.get(b":status")
    if status is None or len(status) != 3 or not status.isdigit() or status[:1] == b"0" or status == b"101":
        raise Malformed("a :status that is missing, not three digits or not for HTTP/2", refusals.PSEUDO_FIELD)
    if status[:1] == b"1":
        _content_length(values, ends=False)
        if ends:
            raise Malformed("an interim response that ends its stream", refusals.STREAM_ORDER)
        return ResponseHead(True, None)
    # RFC 9110, 6.4.1: no content, whatever content-length says.
    has_no_content = to_head or status in (b"204", b"304")
    length = _content_length(values, ends=ends and not has_no_content)
    return ResponseHead(False, 0 if has_no_content else length)


def check_trailers(fields: Fields, *, ends: bool = True) -> None:
    """Raise Malformed unless this is a trailer section: no pseudo-fields (RFC 9113, 8.1); it may be empty."""
    _checked(fields, _OF_TRAILERS)
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


def _checked(fields: Fields, pseudo: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the value of each name, the last one of those that repeat; raises Malformed for a name or value.

    `pseudo`: the pseudo-fields that there may be in such a section.
    """
    names = [name for name, _, _ in fields]
    values = {name: value for name, value, _ in fields}
    regular = [name for name in names if name not in pseudo]
    if b"" in values or b"".join(regular).translate(None, _IN_NAMES):
        raise Malformed("a field name that is empty, has upper case, is no token, or a pseudo-field unknown here")
    if names[len(names) - len(regular) :] != regular:
        raise Malformed("a pseudo-field after a regular field")
    if not CONNECTION_SPECIFIC.isdisjoint(values):
        raise Malformed("a connection-specific field")
    if len(values) < len(names) and any(names.count(name) > 1 for name in (*pseudo, b"content-length", b"host")):
        raise Malformed("a field twice that there may be once")
    if b"te" in values and any(name == b"te" and value.lower() != b"trailers" for name, value, _ in fields):
        raise Malformed("te other than trailers")
    _check_values([value for _, value, _ in fields])
    return values


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


def _content_length(values: dict[bytes, bytes], *, ends: bool) -> int | None:
    value = values.get(b"content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > _MOST_LENGTH_DIGITS:
        raise Malformed("a content-length that is no length", refusals.CONTENT_LENGTH)
    length = int(value)
    if ends and length:
        raise Malformed("content was announced and none follows", refusals.CONTENT_LENGTH)
    return length


def _is_visible(text: bytes) -> bool:
    return not text.translate(None, _VISIBLE)


def section_octets(fields: Fields) -> int:
    """Return the size of a field section (RFC 9113, 6.5.2): names, values, and 32 octets a line."""
    return sum(len(name) + len(value) + 32 for name, value, _ in fields)

"""The fields of requests sent upstream, and of responses sent downstream (RFC 9110, 7.6.1; RFC 9113, 8.2, 8.3). Pure.

Only the sidecar sets the token field: a client's `x-serverless-authorization` is never forwarded, neither in the head
nor in trailers. Names arrive in lower case (the engine refuses others, HTTP/1.1 lowers them). Spellings with
underscores are dropped, too, because CGI-like containers cannot tell them apart. So are the fields with which a
deployment chooses its authentication: they are for the sidecar.

Field lines are forwarded as the objects that were received: the other connection's compressor recognises them without a
look-up. Lines that a route adds are made once, for the same reason.
"""

from __future__ import annotations

from itertools import product
from typing import Final

from proxy.http2.events import FieldLine, Fields
from proxy.http2.policy.fields import CONNECTION_SPECIFIC
from proxy.routes.open_routes import DEPLOYMENT_FIELDS, FIELD_PREFIX, FieldLines

__all__ = [
    "TOKEN_FIELD",
    "WATCHED_IN_REQUESTS",
    "WATCHED_IN_RESPONSES",
    "deployment_lines",
    "end_to_end",
    "end_to_end_response",
    "end_to_end_trailers",
    "has_token",
    "method_line",
    "request_authority",
    "signed_head",
    "token_line",
]

TOKEN_FIELD: Final = b"x-serverless-authorization"
"""Cloud Run checks this field before `Authorization`, which so reaches the container unchanged
(https://cloud.google.com/run/docs/authenticating/service-to-service)."""

_TOKEN_SPELLINGS: Final = frozenset(
    b"x" + first + b"serverless" + second + b"authorization" for first, second in product((b"-", b"_"), repeat=2)
)

_CONNECTION_SPECIFIC: Final = CONNECTION_SPECIFIC | {b"http2-settings"}

# Between a client and its proxy (RFC 9110, 11.7): these credentials are for the sidecar, which asks for none.
_PROXY_AUTHENTICATION: Final = frozenset((b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"))

# Fields that must be known before the content (RFC 9110, 6.5.1). A recipient that merges trailers into the head would
# misread them.
_NOT_IN_TRAILERS: Final = (
    _TOKEN_SPELLINGS
    | DEPLOYMENT_FIELDS
    | _CONNECTION_SPECIFIC
    | _PROXY_AUTHENTICATION
    | {b"content-length", b"te", b"trailer"}  # framing
    | {b"host", b"max-forwards"}  # routing
    | {b"authorization", b"cookie", b"set-cookie", b"www-authenticate"}  # authentication
    | {b"cache-control", b"expect", b"pragma", b"range"}  # request modifiers
    | {b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since"}
    | {b"accept", b"accept-charset", b"accept-encoding", b"accept-language"}
    | {b"age", b"date", b"expires", b"location", b"retry-after", b"vary", b"warning"}  # response control
    | {b"content-encoding", b"content-range", b"content-type"}  # content format
)

# All there are in a request: the engines let no other pass (RFC 9113, 8.3.1).
_PSEUDO_FIELDS: Final = frozenset((b":method", b":scheme", b":authority", b":path"))

# `host` would contradict the rewritten `:authority`. `via` is forwarded after the others.
_NOT_FOR_UPSTREAM: Final = (
    _TOKEN_SPELLINGS
    | DEPLOYMENT_FIELDS
    | _CONNECTION_SPECIFIC
    | _PROXY_AUTHENTICATION
    | _PSEUDO_FIELDS
    | {b"host", b"via"}
)

WATCHED_IN_REQUESTS: Final = _NOT_FOR_UPSTREAM - _PSEUDO_FIELDS
"""Field names that most request heads do not have: then all lines but the pseudo-fields are forwarded."""

WATCHED_IN_RESPONSES: Final = _PROXY_AUTHENTICATION
"""The same for response heads: then all lines are forwarded."""

_METHOD_LINES: Final[dict[bytes, FieldLine]] = {
    method: (b":method", method, False)
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
}

_POST_LINE: Final = _METHOD_LINES[b"POST"]


def request_authority(head: Fields) -> bytes:
    """Return the authority of a request head: `:authority`, or `host` where there is none (RFC 9113, 8.3.1)."""
    host = b""
    for line in head:
        name = line[0]
        if name == b":authority":
            return line[1]
        if name == b"host":
            host = line[1]
    return host


def method_line(method: bytes) -> FieldLine:
    """Return the `:method` line; the same object for the same common method."""
    if method == b"POST":
        return _POST_LINE
    return _METHOD_LINES.get(method) or (b":method", method, False)


def end_to_end(head: Fields) -> Fields:
    """Return the lines of a request head that cross over, in their order, with octets and never-indexed mark.

    Not among them: pseudo-fields, every spelling of the token field, what is between us and the client alone, and
    `via`. Where nothing but the four pseudo-fields is missing, the head had none of these.
    """
    return [line for line in head if line[0] not in _NOT_FOR_UPSTREAM]


def deployment_lines(head: Fields) -> FieldLines:
    """Return name and value of each line of a request head that is meant for the sidecar, misspelled ones included.

    On an open route a request with a misspelled one is refused, so that none of them is ever sent there.
    """
    return tuple([(line[0], line[1]) for line in head if _is_own(line[0])])


def _is_own(name: bytes) -> bool:
    return name[:1] == b"x" and name.replace(b"_", b"-").startswith(FIELD_PREFIX)


def end_to_end_response(head: Fields) -> Fields:
    """Return the lines of a response head that cross over: all but those for a proxy's client."""
    for line in head:
        if line[0] in _PROXY_AUTHENTICATION:
            return [line for line in head if line[0] not in _PROXY_AUTHENTICATION]
    return head


def end_to_end_trailers(trailers: Fields) -> Fields:
    """Return the lines of a trailer section that cross over, of a request or a response."""
    return [field for field in trailers if field[0] not in _NOT_IN_TRAILERS]


def has_token(head: Fields) -> bool:
    """Return whether the token field is there, in any spelling."""
    return any(name in _TOKEN_SPELLINGS for name, _, _ in head)


def token_line(authorization: bytes) -> FieldLine:
    """Return the line that carries a token, which is `Bearer <JWT>`.

    It may be indexed (its entropy makes guessing hopeless, RFC 7541, 7.1.1): it repeats in every request of an hour.
    """
    return (TOKEN_FIELD, authorization, False)


def signed_head(
    lines: Fields, method: FieldLine, scheme: FieldLine, authority: FieldLine, path: FieldLine, token: FieldLine | None
) -> Fields:
    """Return the head to send upstream: pseudo-fields, the token's line, and `lines`, which are `end_to_end`."""
    fields = [method, scheme, authority, path] if token is None else [method, scheme, authority, path, token]
    fields += lines
    return fields

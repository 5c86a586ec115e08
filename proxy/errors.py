"""One tree of failures. Each leaf knows what Restate is answered and what a person has to do.

How Restate reads an answer decides the columns (restate 1.7, service-client and invoker):

* an invocation that gets 503 with `retry-after` is tried again after that time and loses no attempt, so everything
  that passes by itself, and everything that an operator can mend while work waits, is 503 there;
* a discovery shows status, fields and body to the person who registers. It repeats 408, 429, 500, 502, 503 and 504
  for some two seconds and gives up at once on any other status, so what does not pass by itself gets such another.

==================================  ==========  =========  ===========  ============
leaf                                invocation  discovery  retry-after  transient
==================================  ==========  =========  ===========  ============
`BadRequest`, `PathRefused`         400         400        –            no
`RouteNotFound`                     404         404        –            no
`MethodRefused`                     501         501        –            no
`LoopDetected`                      508         508        –            no
`TokenFromCaller`                   400         400        –            no
`BrowserRefused`                    403         403        –            no
`Draining`, `Overloaded`            503         503        1–5 s        yes
`Internal`                          500         500        –            no
`TokenTimeout`, `TokenUnavailable`  503         503        1–5 s        yes
`CredentialsNotFound`               503         503        1–5 s        yes
`TokenMalformed`, `TokenExpired`    503         503        1–5 s        yes
`CredentialsInvalid`                503         424        10–30 s      no
`CredentialsRejected`               503         424        10–30 s      no
`AmbientUnsupported`                503         424        10–30 s      no
`ImpersonationDenied`               503         424        10–30 s      no
`MintRefused`                       503         424        10–30 s      no
`ProxyInvalid`                      503         424        10–30 s      no
`UpstreamConnectFailed`             503         503        1–5 s        yes
`UpstreamConnectTimeout`            503         503        1–5 s        yes
`UpstreamTlsFailed`                 503         424        10–30 s      no
`UpstreamNotHttp2`                  503         424        10–30 s      no
`UpstreamSaturated`                 503         503        1–5 s        yes
`UpstreamRefusedStream`             503         503        1–5 s        yes
`UpstreamConnectionLost`            503         503        1–5 s        yes
`UpstreamReset`                     502         502        –            yes
==================================  ==========  =========  ===========  ============

No text in here may carry a token, a key or an `Authorization` value.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, NamedTuple

from proxy.quoting import one_line

__all__ = [
    "ERROR_FIELD",
    "AmbientUnsupported",
    "Answer",
    "BadRequest",
    "BrowserRefused",
    "CredentialsInvalid",
    "CredentialsNotFound",
    "CredentialsRejected",
    "Draining",
    "Failure",
    "ImpersonationDenied",
    "Internal",
    "LoopDetected",
    "MethodRefused",
    "MintRefused",
    "Overloaded",
    "PathRefused",
    "Permanent",
    "ProxyInvalid",
    "RequestRefused",
    "RouteNotFound",
    "TokenExpired",
    "TokenFailure",
    "TokenFromCaller",
    "TokenMalformed",
    "TokenTimeout",
    "TokenUnavailable",
    "Transient",
    "UpstreamConnectFailed",
    "UpstreamConnectTimeout",
    "UpstreamConnectionLost",
    "UpstreamFailure",
    "UpstreamNotHttp2",
    "UpstreamRefusedStream",
    "UpstreamReset",
    "UpstreamSaturated",
    "UpstreamTlsFailed",
    "answer",
    "leaves",
    "retry_after",
]

ERROR_FIELD: Final = b"x-cloudrun-sidecar-error"

_MOST_CHARACTERS: Final = 4_000
"""Of a sentence; the list of routes in one may be long."""


class Failure(Exception):
    """Something that ends an exchange before its response began; `str()` is the sentence for a person."""

    code: ClassVar[str]
    """Stable name, sent as `x-cloudrun-sidecar-error`."""
    status: ClassVar[int]
    """HTTP status of the answer to an invocation."""
    discovery_status: ClassVar[int]
    """HTTP status of the answer to a discovery."""
    retry_after_seconds: ClassVar[tuple[int, int] | None]
    """Least and most seconds of `retry-after`, or None for no such field."""
    transient: ClassVar[bool]
    """Whether it is expected to pass by itself, without anybody mending anything."""
    severity: ClassVar[Literal["warning", "error"]] = "warning"
    """Of its log line: `error` where somebody has to mend something on this side."""


class RequestRefused(Failure):
    """The request itself is at fault; the same request will fail again."""

    retry_after_seconds = None
    transient = False


class Transient(Failure):
    """Passes by itself: Restate is told to come back soon and loses no attempt."""

    status = 503
    discovery_status = 503
    retry_after_seconds: ClassVar[tuple[int, int]] = (1, 5)
    transient = True


class Permanent(Failure):
    """Stays until somebody mends it: work waits, and a registration fails at once with the remedy."""

    status = 503
    discovery_status = 424
    retry_after_seconds = (10, 30)
    transient = False
    severity = "error"


class TokenFailure(Failure):
    """No ID token, so nothing was sent upstream."""


class UpstreamFailure(Failure):
    """The upstream could not be reached, or went away before it answered."""


class BadRequest(RequestRefused):
    """An HTTP/1.1 request that is malformed, ambiguous or too long; where there is a more exact status, it is sent."""

    code = "bad-request"
    status = discovery_status = 400


class PathRefused(RequestRefused):
    """The path could mean another route, or leave the route's base path, once somebody normalises it."""

    code = "path-refused"
    status = discovery_status = 400


class RouteNotFound(RequestRefused):
    """No route has a prefix of this path."""

    code = "route-not-found"
    status = discovery_status = 404


class MethodRefused(RequestRefused):
    """CONNECT, TRACE, `Upgrade` and the like have no meaning through this proxy."""

    code = "method-refused"
    status = discovery_status = 501


class LoopDetected(RequestRefused):
    """The request came from this sidecar itself, or has passed through too many others."""

    code = "loop-detected"
    status = discovery_status = 508


class TokenFromCaller(RequestRefused):
    """A discovery with a Google token of Restate's own. An invocation is forwarded, with ours in its place."""

    code = "token-from-caller"
    status = discovery_status = 400


class BrowserRefused(RequestRefused):
    """A page in somebody's browser would call the services with the sidecar's identity (cross-site request forgery)."""

    code = "browser-refused"
    status = discovery_status = 403


class Draining(Transient):
    """The sidecar is shutting down and takes no new exchange."""

    code = "draining"


class Overloaded(Transient):
    """A limit of the sidecar itself was reached."""

    code = "overloaded"


class Internal(Failure):
    """A defect of the sidecar."""

    code = "internal"
    status = discovery_status = 500
    retry_after_seconds = None
    transient = False
    severity = "error"


class TokenTimeout(TokenFailure, Transient):
    """Minting took longer than its deadline."""

    code = "token-timeout"


class TokenUnavailable(TokenFailure, Transient):
    """Google (or the metadata server) could not be reached, answered 5xx or 429, or closed the connection."""

    code = "token-unavailable"


class CredentialsNotFound(TokenFailure, Transient):
    """No credential file and no metadata server; the latter may still be starting (GKE), hence transient."""

    code = "credentials-not-found"


class TokenMalformed(TokenFailure, Transient):
    """What was minted is not a JWT with an expiry."""

    code = "token-malformed"


class TokenExpired(TokenFailure, Transient):
    """What was minted is expired already: a clock is wrong."""

    code = "token-expired"


class CredentialsInvalid(TokenFailure, Permanent):
    """The credential file is missing, unreadable, or not what it should be."""

    code = "credentials-invalid"


class CredentialsRejected(TokenFailure, Permanent):
    """Google does not take the credential any more (`invalid_grant`: revoked, deleted, expired)."""

    code = "credentials-rejected"


class AmbientUnsupported(TokenFailure, Permanent):
    """This kind of credential cannot mint an ID token for an audience; impersonation can."""

    code = "ambient-unsupported"


class ImpersonationDenied(TokenFailure, Permanent):
    """IAM says no: `roles/iam.serviceAccountOpenIdTokenCreator` is missing on the impersonated account."""

    code = "impersonation-denied"


class ProxyInvalid(TokenFailure, Permanent):
    """The environment names a proxy that cannot be used (SOCKS, or no URL of a proxy)."""

    code = "proxy-invalid"


class MintRefused(TokenFailure, Permanent):
    """Google refused to mint for a reason other than the above (4xx)."""

    code = "mint-refused"


class UpstreamConnectFailed(UpstreamFailure, Transient):
    """Name resolution or the TCP connection failed."""

    code = "upstream-connect-failed"


class UpstreamConnectTimeout(UpstreamFailure, Transient):
    """Resolution, TCP and TLS together took longer than the connect deadline."""

    code = "upstream-connect-timeout"


class UpstreamTlsFailed(UpstreamFailure, Permanent):
    """The upstream's certificate does not verify, or TLS failed otherwise."""

    code = "upstream-tls-failed"


class UpstreamNotHttp2(UpstreamFailure, Permanent):
    """The upstream does not offer HTTP/2 (ALPN h2)."""

    code = "upstream-not-http2"


class UpstreamSaturated(UpstreamFailure, Transient):
    """All streams of all connections that may be opened are taken, for longer than a request may wait."""

    code = "upstream-saturated"


class UpstreamRefusedStream(UpstreamFailure, Transient):
    """The upstream did not process the request (REFUSED_STREAM, GOAWAY) and its octets are no longer held."""

    code = "upstream-refused-stream"


class UpstreamConnectionLost(UpstreamFailure, Transient):
    """The upstream connection ended after the request was sent and before a response began."""

    code = "upstream-connection-lost"


class UpstreamReset(UpstreamFailure):
    """The upstream reset the stream before a response began (told only to HTTP/1.1 callers, who know no reset)."""

    code = "upstream-reset"
    status = discovery_status = 502
    retry_after_seconds = None
    transient = True


class Answer(NamedTuple):
    """A response made up by the sidecar; `fields` are (name, value) and hold no pseudo-field."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes


def answer(failure: Failure, *, discovery: bool, random_fraction: float) -> Answer:
    """Return what the caller is told; `random_fraction` in [0, 1) spreads `retry-after`, lest all return at once."""
    text = one_line(str(failure), _MOST_CHARACTERS) or failure.code
    body = f"cloudrun-sidecar: {text}\n".encode(errors="backslashreplace")
    fields = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (ERROR_FIELD, failure.code.encode()),
    ]
    if failure.retry_after_seconds is not None:
        fields.append((b"retry-after", retry_after(failure.retry_after_seconds, random_fraction)))
    return Answer(failure.discovery_status if discovery else failure.status, fields, body)


def retry_after(seconds: tuple[int, int], random_fraction: float) -> bytes:
    """Return a value of `retry-after` within these bounds, both included; `random_fraction` in [0, 1) decides where."""
    least, most = seconds
    return str(least + int(random_fraction * (most - least + 1))).encode()


def leaves() -> list[type[Failure]]:
    """Return every failure that has a code, in alphabetical order of the codes."""
    found: dict[str, type[Failure]] = {}
    pending: list[type[Failure]] = [Failure]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "code" in vars(kind):
            found[kind.code] = kind
    return [found[code] for code in sorted(found)]

"""What the client downstream expects: Restate 1.7 (service-client, invoker and admin API). Pure.

This module is the sidecar's policy for its client. Another client than Restate is another file with these names:

* `classify`                                              what a request is
* `local_reply`                                           what a failure is answered with
* `missing_retry_after`, `stops_work`                     what an upstream's error status needs
* `caller_token_remedy`                                   what to do about a Google token of the client's own
* `KEEP_ALIVE_SECONDS`                                    how long an idle connection stays open
* `DISCOVERY_ACCEPT`, `is_manifest`, `manifest_services`  how a route is tried

Restate sends three kinds of requests:

* `GET {prefix}/discover` asks for the manifest. A person waits for it, and sees the answer with its body.
* `POST {prefix}/invoke/{service}/{handler}` runs a handler. Nobody sees the body of a failed one.
* Others, such as `POST {prefix}/serdes/…`, serve the UI, which can wait and repeat.

How Restate reads an answer decides the table of local replies:

* An invocation that gets 503 with `retry-after` is retried after that time and uses up no attempt. So everything that
  is transient, and everything that an operator can repair while work waits, is 503 there. Without `retry-after`, three
  answers pause it where its retry policy says `max-attempts = 3`.
* A discovery shows status, fields and body to the person who registers. Restate repeats it for some two seconds on 408,
  429, 500, 502, 503 and 504, and stops at once on any other status. So what is not transient gets another status.

==================================  =====  =========  ===========
failure                             other  discovery  retry-after
==================================  =====  =========  ===========
`BadRequest`, `PathRefused`         400    400        –
`RouteNotFound`                     404    404        –
`HeadTooLarge`                      431    431        –
`MethodRefused`                     501    501        –
`LoopDetected`                      508    508        –
`TokenFromCaller`                   400    400        –
`BrowserRefused`                    403    403        –
`CallerUnverified`                  401    401        –
`DeploymentRefused`                 503    403        10–30 s
`Draining`, `Overloaded`            503    503        1–5 s
`Internal`                          500    500        –
`TokenTimeout`, `TokenUnavailable`  503    503        1–5 s
`CredentialsNotFound`               503    503        1–5 s
`TokenMalformed`, `TokenExpired`    503    503        1–5 s
`CredentialsInvalid`                503    424        10–30 s
`CredentialsRejected`               503    424        10–30 s
`AmbientUnsupported`                503    424        10–30 s
`ImpersonationDenied`               503    424        10–30 s
`MintRefused`                       503    424        10–30 s
`ProxyInvalid`                      503    424        10–30 s
`UpstreamConnectFailed`             503    503        1–5 s
`UpstreamConnectTimeout`            503    503        1–5 s
`UpstreamTlsFailed`                 503    424        10–30 s
`UpstreamNotHttp2`                  503    424        10–30 s
`UpstreamSaturated`                 503    503        1–5 s
`UpstreamRefusedStream`             503    503        1–5 s
`UpstreamConnectionLost`            503    503        1–5 s
`UpstreamReset`                     502    502        –
==================================  =====  =========  ===========
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from proxy import errors
from proxy.errors import ERROR_FIELD, Failure
from proxy.quoting import one_line

__all__ = [
    "DISCOVERY_ACCEPT",
    "KEEP_ALIVE_SECONDS",
    "REPLY_RULES",
    "LocalReply",
    "ReplyRule",
    "RequestKind",
    "caller_token_remedy",
    "classify",
    "is_manifest",
    "local_reply",
    "manifest_services",
    "missing_retry_after",
    "stops_work",
]

KEEP_ALIVE_SECONDS: Final = 720
"""Idle time of an HTTP/1.1 connection: Restate may be silent for 60 s + 600 s, and pools connections for 300 s."""

_MANIFEST: Final = "application/vnd.restate.endpointmanifest.v{}+json"

DISCOVERY_ACCEPT: Final = ", ".join(_MANIFEST.format(version) for version in range(1, 5)).encode()
"""The `accept` value of Restate's discoveries."""

_IS_MANIFEST: Final = re.compile(re.escape(_MANIFEST).replace(r"\{\}", "[0-9]+"))

_INVOCATION: Final = re.compile(rb"[^?]*/invoke/[^/?]+/[^/?]+(?:\?|\Z)")
"""The end of the path of an invocation; the name of a service or handler is one segment."""

_MOST_CHARACTERS: Final = 4_000
"""Of the sentence in a local reply; the list of routes in one may be long."""

_SOON: Final = (1, 5)
_LATER: Final = (10, 30)

_RETRIED_FOR_FREE: Final = frozenset((429, 503))
"""Statuses that use up no attempt of an invocation, if `retry-after` comes with them."""

_UNAUTHORIZED: Final = 401
_CHALLENGE: Final = b"Restate-Request-Identity"
"""A response with this status must name a way to authenticate (RFC 9110, 15.5.2). None is registered for this one."""

# Restate follows no redirect.
_STOPS_WORK: Final = frozenset((301, 302, 303, 307, 308, 401, 403, 404, 415, 429, 502, 503, 504, 508))


class RequestKind(Enum):
    """What a request is to Restate."""

    DISCOVERY = "discovery", True
    INVOCATION = "invocation", False
    OTHER = "other", False

    def __init__(self, label: str, interactive: bool) -> None:
        self.label = label
        """The kind in a word."""
        self.interactive = interactive
        """True if a person waits for the answer and has to see whether everything works now: the token is minted for
        this request alone, and a Google token of the caller is refused, not dropped."""


class ReplyRule(NamedTuple):
    """What a failure is answered with."""

    status: int
    """HTTP status for invocations and other requests."""
    discovery_status: int
    """HTTP status for discoveries."""
    retry_after_seconds: tuple[int, int] | None
    """Least and greatest value of `retry-after`; None for no such field."""


class LocalReply(NamedTuple):
    """A response that the sidecar makes itself."""

    status: int
    """HTTP status."""
    fields: list[tuple[bytes, bytes]]
    """Name and value of each; without pseudo-fields."""
    body: bytes
    """One line of text, in UTF-8."""


_TRANSIENT: Final = ReplyRule(503, 503, _SOON)
_REPAIRABLE: Final = ReplyRule(503, 424, _LATER)

REPLY_RULES: Final[Mapping[type[Failure], ReplyRule]] = {
    errors.BadRequest: ReplyRule(400, 400, None),
    errors.PathRefused: ReplyRule(400, 400, None),
    errors.RouteNotFound: ReplyRule(404, 404, None),
    errors.HeadTooLarge: ReplyRule(431, 431, None),
    errors.MethodRefused: ReplyRule(501, 501, None),
    errors.LoopDetected: ReplyRule(508, 508, None),
    errors.TokenFromCaller: ReplyRule(400, 400, None),
    errors.BrowserRefused: ReplyRule(403, 403, None),
    errors.CallerUnverified: ReplyRule(401, 401, None),
    # Work of a deployment that a list does not allow any more waits until a list or the deployment is corrected.
    errors.DeploymentRefused: ReplyRule(503, 403, _LATER),
    errors.Draining: _TRANSIENT,
    errors.Overloaded: _TRANSIENT,
    errors.Internal: ReplyRule(500, 500, None),
    errors.TokenTimeout: _TRANSIENT,
    errors.TokenUnavailable: _TRANSIENT,
    errors.CredentialsNotFound: _TRANSIENT,
    errors.TokenMalformed: _TRANSIENT,
    errors.TokenExpired: _TRANSIENT,
    errors.CredentialsInvalid: _REPAIRABLE,
    errors.CredentialsRejected: _REPAIRABLE,
    errors.AmbientUnsupported: _REPAIRABLE,
    errors.ImpersonationDenied: _REPAIRABLE,
    errors.MintRefused: _REPAIRABLE,
    errors.ProxyInvalid: _REPAIRABLE,
    errors.UpstreamConnectFailed: _TRANSIENT,
    errors.UpstreamConnectTimeout: _TRANSIENT,
    errors.UpstreamTlsFailed: _REPAIRABLE,
    errors.UpstreamNotHttp2: _REPAIRABLE,
    errors.UpstreamSaturated: _TRANSIENT,
    errors.UpstreamRefusedStream: _TRANSIENT,
    errors.UpstreamConnectionLost: _TRANSIENT,
    errors.UpstreamReset: ReplyRule(502, 502, None),
}
"""One row for each failure; the table above."""

_RULES_BY_CODE: Final = {kind.code: rule for kind, rule in REPLY_RULES.items()}  # tokens/ has subclasses of some kinds


def classify(method: bytes, path: bytes) -> RequestKind:
    """Return what a request is; `path` may have a prefix and a query."""
    if method == b"GET" and path.partition(b"?")[0].endswith(b"/discover"):
        return RequestKind.DISCOVERY
    if method == b"POST" and _INVOCATION.match(path):
        return RequestKind.INVOCATION
    return RequestKind.OTHER


def local_reply(failure: Failure, kind: RequestKind, random_fraction: float) -> LocalReply:
    """Return what the client is answered.

    `random_fraction` in [0, 1) chooses `retry-after` within its bounds, so that clients do not all come back at once.
    """
    rule = _RULES_BY_CODE[failure.code]
    text = one_line(str(failure), _MOST_CHARACTERS) or failure.code
    body = f"cloudrun-sidecar: {text}\n".encode(errors="backslashreplace")
    fields = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (ERROR_FIELD, failure.code.encode()),
    ]
    if rule.retry_after_seconds is not None:
        fields.append((b"retry-after", _retry_after(rule.retry_after_seconds, random_fraction)))
    if rule.status == _UNAUTHORIZED:
        fields.append((b"www-authenticate", _CHALLENGE))
    return LocalReply(rule.discovery_status if kind is RequestKind.DISCOVERY else rule.status, fields, body)


def missing_retry_after(
    status: int, fields: list[tuple[bytes, bytes, bool]], random_fraction: float
) -> tuple[bytes, bytes, bool] | None:
    """Return the `retry-after` line that an upstream's response head lacks; None if it has one or needs none.

    Its value is that of transient local replies; `random_fraction` is as in `local_reply`.
    """
    if status not in _RETRIED_FOR_FREE or any(name == b"retry-after" for name, _, _ in fields):
        return None
    return (b"retry-after", _retry_after(_SOON, random_fraction), False)


def stops_work(status: int) -> bool:
    """Return True if an upstream's answer with this status stops an invocation or a registration."""
    return status in _STOPS_WORK


def caller_token_remedy(*, signed: bool) -> str:
    """Return what is wrong with a request that has a Google token, and how to register without it.

    `signed` is true if the route adds a token of the sidecar.
    """
    adds = "the sidecar adds its own" if signed else "the route adds none (gcp_id_token = false)"
    return (
        f"the request has a Google token already (X-Serverless-Authorization), which never passes; {adds}. Register "
        "the same URL without Restate's --gcp-id-token, --gcp-impersonate-service-account and --gcp-audience (in the "
        "admin API: without auth), and without that field in --extra-header: restate deployments register --force URL"
    )


def is_manifest(content_type: str) -> bool:
    """Return True if this content type is that of a manifest, of any version."""
    return _IS_MANIFEST.fullmatch(content_type.partition(";")[0].strip().lower()) is not None


def manifest_services(body: bytes) -> dict[str, list[str]]:
    """Return the handlers of each service that a manifest lists, by name. Raises ValueError if it is no manifest."""
    try:
        manifest = json.loads(body)
        return {_name(service): [_name(handler) for handler in service["handlers"]] for service in manifest["services"]}
    except (ValueError, KeyError, TypeError, RecursionError):  # Not chained: the error could quote the answer.
        raise ValueError("it is no manifest of services") from None


def _retry_after(seconds: tuple[int, int], random_fraction: float) -> bytes:
    """Return a value within these bounds, both included."""
    least, most = seconds
    return str(least + int(random_fraction * (most - least + 1))).encode()


def _name(entry: Any) -> str:
    name = entry["name"]
    if not isinstance(name, str):
        raise TypeError
    return name

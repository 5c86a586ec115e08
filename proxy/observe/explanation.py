"""What an error response or a failure means and what mends it, in the words that `check` uses."""

from __future__ import annotations

import functools
import inspect
from typing import Final, NamedTuple

from proxy.clock_skew import skew_seconds
from proxy.cloud_run.findings import Finding, RequestInfo, diagnose
from proxy.cloud_run.response import Response
from proxy.errors import Failure, UpstreamReset, all_failures
from proxy.http2.events import ErrorCode, Fields, error_code_name
from proxy.http2.policy import refusals
from proxy.observe.exchange import ObservedExchange
from proxy.routes import Route

__all__ = [
    "REFUSALS",
    "ErrorResponse",
    "ends_exchange",
    "explain_broken_rule",
    "explain_reset",
    "explain_response",
    "remedy_of",
    "remedy_of_code",
]

REFUSALS: Final = {
    refusals.SECTION_TOO_LARGE: "its head or trailers are larger than max_field_section; send fewer or shorter fields, "
    "or raise it",
    refusals.TOO_MANY_INTERIM: "it sends more interim heads (1xx) than max_interim_heads; see why, or raise it",
    "tls-not-spoken": "a client speaks TLS at an address of listen: register http://, or have tls_listen",
}
"""What mends a refusal that a setting, or another URL, can mend, by reason."""

_REMEDY: Final = "Remedy:"


class ErrorResponse(NamedTuple):
    """An error response of a service, and what it means."""

    www_authenticate: str
    """The challenge of its head; empty if it has none."""
    finding: Finding
    """Cause and remedy."""


def explain_response(
    route: Route, exchange: ObservedExchange, fields: Fields, content: bytes, now: float
) -> ErrorResponse:
    """Return what an error response on this route means; `now` is wall-clock time in seconds.

    The content decides what is said, and is not repeated.
    """
    by_name = {name.decode("latin-1"): value.decode("latin-1") for name, value, _ in fields}
    path = exchange.upstream_path
    finding = diagnose(
        Response(exchange.status, by_name, content),
        RequestInfo(
            route=route,
            path=path[1].partition(b"?")[0].decode("latin-1") if path is not None else "",
            principal=exchange.principal,
            skew_seconds=skew_seconds(by_name.get("date"), now),
        ),
    )
    return ErrorResponse(by_name.get("www-authenticate", ""), finding)


def ends_exchange(by: str, code: int) -> bool:
    """Return True if a reset (`ExchangeObserver.stream_reset`) ends its exchange.

    A request that the service refused unprocessed is sent again, or becomes a failure.
    """
    return code != ErrorCode.REFUSED_STREAM or by != "upstream"


def explain_reset(exchange: ObservedExchange, by: str, code: int) -> UpstreamReset | None:
    """Return the failure of a service that resets a stream; None for other resets.

    After a whole response, CANCEL is none: some services send it where NO_ERROR is meant.
    """
    if by != "upstream" or not ends_exchange(by, code) or (code == ErrorCode.CANCEL and exchange.response_done):
        return None
    when = "before it answered"
    if exchange.status:
        when = "after its response" if exchange.response_done else "during its response"
    return UpstreamReset(f"the service reset the stream with {error_code_name(code)} {when}")


def explain_broken_rule(rule: str | None) -> UpstreamReset:
    """Return the failure of a service whose response breaks a rule of HTTP/2, one of `policy.refusals`."""
    remedy = REFUSALS.get(rule or "", "see what makes such a response: the service, or what stands before it")
    return UpstreamReset(f"the response breaks a rule of HTTP/2 ({rule})", remedy=remedy)


def remedy_of(failure: Failure) -> str:
    """Return what mends a failure, in a sentence: what it says itself, else the remedy of its kind."""
    if failure.remedy:
        return f"{failure.remedy[:1].upper()}{failure.remedy[1:]}."
    return remedy_of_code(failure.code) or ""


@functools.cache
def remedy_of_code(code: str) -> str | None:
    """Return what mends the failures with this code; None for a code that no failure has."""
    kind = next((kind for kind in all_failures() if kind.code == code), None)
    if kind is None:
        return None
    _, _, remedy = inspect.cleandoc(kind.__doc__ or "").partition(_REMEDY)
    text = " ".join(remedy.split()).replace("`", "")
    return text[:1].upper() + text[1:]

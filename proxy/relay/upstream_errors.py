"""Log lines for answers of an upstream that stop work, with what mends them.

Restate shows neither fields nor body of such an answer, so this is where a person learns more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import structlog

from proxy.clock_skew import skew_seconds
from proxy.cloud_run.findings import RequestInfo, diagnose
from proxy.cloud_run.response import Response
from proxy.http2.events import Fields

if TYPE_CHECKING:
    from proxy.relay.exchange import Exchange
    from proxy.routes import Route

__all__ = ["log_error_answer", "says_more_in_content"]

_log: Final = structlog.get_logger("relay")

# The front end says why in a line of text: `upstream connect error … reset reason: protocol error`.
_SAID_IN_CONTENT: Final = frozenset((502, 503))


def says_more_in_content(status: int) -> bool:
    """Return whether the line should wait for the beginning of the content."""
    return status in _SAID_IN_CONTENT


def log_error_answer(
    route: Route, exchange: Exchange, head: Fields, content: bytes, now: float, repeats: Mapping[str, int]
) -> None:
    """Write the line for an answer with this head; `content` is the beginning of its content.

    The content decides what is said, and is not repeated.
    """
    upstream_path = exchange.upstream_path[1] if exchange.upstream_path is not None else b""
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value, _ in head}
    response = Response(int(fields[":status"]), fields, content)
    found = diagnose(
        response,
        RequestInfo(
            route=route,
            path=upstream_path.partition(b"?")[0].decode("latin-1"),
            principal=exchange.token.principal if exchange.token is not None else None,
            skew_seconds=skew_seconds(response.fields.get("date"), now),
        ),
    )
    _log.warning(
        "upstream answered an error",
        route=route.name,
        status=response.status,
        www_authenticate=fields.get("www-authenticate", ""),
        code=found.code,
        reason=found.text,
        remedy=found.remedy,
        commands=list(found.commands),
        **repeats,
    )

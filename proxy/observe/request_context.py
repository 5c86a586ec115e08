"""What ties the log lines of an exchange to others: its trace and its invocation."""

from __future__ import annotations

import re
from typing import Any, Final

from proxy.observe.exchange import ObservedExchange

__all__ = ["INVOCATION_ID", "SPAN_ID", "TRACE", "TRACE_SAMPLED", "request_context"]

INVOCATION_ID: Final = "invocation_id"
"""Key of the invocation of Restate."""
TRACE: Final = "trace"
"""Key of a trace id, 32 hexadecimal digits."""
SPAN_ID: Final = "span_id"
"""Key of the id of the span that is the parent of the request, 16 hexadecimal digits."""
TRACE_SAMPLED: Final = "trace_sampled"
"""Key that says whether the client records the trace."""

# W3C Trace Context, 3.2: later versions than 00 may have more behind the flags.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
# What Restate sends there; anything else is not repeated.
_INVOCATION: Final = re.compile(rb"inv_[A-Za-z0-9]{1,64}")


def request_context(exchange: ObservedExchange) -> dict[str, Any]:
    """Return fields for a log line: `TRACE`, `SPAN_ID`, `TRACE_SAMPLED`, `INVOCATION_ID`; those that the request has.

    They come from `traceparent` and `x-restate-invocation-id`. Two of `traceparent` are no trace, as for spans.
    """
    context: dict[str, Any] = {}
    parents = [value for name, value, _ in exchange.fields if name == b"traceparent"]
    found = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is not None:
        context[TRACE] = found[1].decode()
        context[SPAN_ID] = found[2].decode()
        context[TRACE_SAMPLED] = bool(int(found[3], 16) & 1)
    for name, value, _ in exchange.fields:
        if name == b"x-restate-invocation-id" and _INVOCATION.fullmatch(value):
            context[INVOCATION_ID] = value.decode()
    return context

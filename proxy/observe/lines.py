"""Log lines on stderr. No secret gets into one (`redact` is only the net below).

Lines are rendered by structlog alone. What libraries say through `logging` at WARNING and above becomes such lines too;
below that nothing of theirs is let through, for google-auth and others log requests and answers at DEBUG.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import Processor

from proxy.exit_codes import shows_colours
from proxy.observe.request_context import SPAN_ID, TRACE, TRACE_SAMPLED
from proxy.quoting import redacted

__all__ = ["configure_logging", "redact"]

_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""The levels of syslog(3)."""


def configure_logging(
    level: Literal["debug", "info", "warning", "error", "critical"], log_format: Literal["auto", "console", "json"]
) -> None:
    """Send lines of `level` and above to stderr, for the whole process; may be called again.

    Loggers are made by `structlog.get_logger("the room")`, before or after; the room's name stands in their lines.

    `json` gives one object a line, as Cloud Logging reads it: `time` (ISO 8601, UTC), `severity` and `message`, for an
    exchange `httpRequest`, and its trace (of the project in GOOGLE_CLOUD_PROJECT, if that is set). `console` is for
    people, in colour on a terminal only, unless NO_COLOR is set or TERM is `dumb`; `auto` is `console` on a terminal
    and `json` elsewhere. If systemd's journal reads stderr, lines also begin with their priority, which it takes off.

    Nothing is written at `critical`: that is for commands that tell by themselves what went wrong.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    rendering: list[Processor] = [_for_cloud_logging, structlog.processors.JSONRenderer()]
    if console:
        # Plain tracebacks: the pretty ones that structlog takes where it finds `rich` print local variables.
        plain = structlog.dev.plain_traceback
        colours = shows_colours(sys.stderr)
        rendering = [_for_terminal, structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    if _is_journal(sys.stderr):
        rendering.append(_for_journal)
    structlog.configure(
        processors=[
            _name_room,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Forward) for handler in root.handlers):
        root.addHandler(_Forward(logging.WARNING))


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the event without values of telling keys and without anything that looks like a credential.

    Values that are no plain data are replaced by their masked `repr`, so that no renderer sees more than this did.
    """
    for key, value in event.items():
        event[key] = redacted(value, key)
    return event


def _name_room(written_to: _Stderr, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if written_to.room:
        event["room"] = written_to.room
    return event


def _for_cloud_logging(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the fields as Cloud Logging reads them, those that every line has first."""
    level = str(event.pop("level", "info"))
    head: dict[str, Any] = {
        "time": event.pop("timestamp", ""),
        "severity": level.upper(),
        "message": event.pop("event", ""),
    }
    if "method" in event and "path" in event:
        head["httpRequest"] = _http_request(event)
    if TRACE in event:
        trace, project = event.pop(TRACE), os.environ.get("GOOGLE_CLOUD_PROJECT")
        head["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace}" if project else trace
        head["logging.googleapis.com/spanId"] = event.pop(SPAN_ID, None)
        head["logging.googleapis.com/trace_sampled"] = event.pop(TRACE_SAMPLED, False)
    return {**head, **event, **head}


def _for_terminal(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put U+FFFD in place of what a terminal obeys, such as escape sequences in the path of a request.

    Line breaks stay in the text of an exception; in other values the renderer writes them as escapes.
    """
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            kept = "" if key == "event" else "\n\t"
            event[key] = "".join(mark if mark.isprintable() or mark in kept else "\ufffd" for mark in value)
    return event


def _is_journal(stream: TextIO) -> bool:
    """Return True if systemd's journal reads the stream: JOURNAL_STREAM, in systemd.exec(5)."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _for_journal(_logger: Any, method: str, line: Any) -> str:
    """Begin each line with its priority: SyslogLevelPrefix= in systemd.exec(5)."""
    start = f"<{_PRIORITIES[method]}>"
    return start + str(line).replace("\n", f"\n{start}")


def _http_request(event: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an exchange as Cloud Logging names them, and take them out of the event."""
    request = {
        "requestMethod": event.pop("method"),
        "requestUrl": event.pop("path"),
        "status": event.pop("status", None),
        # 64-bit numbers are strings in JSON of Google, and so are durations.
        "latency": f"{event.pop('milliseconds', 0) / 1000:.4f}s",
        "requestSize": str(event.pop("request_octets", 0)),
        "responseSize": str(event.pop("response_octets", 0)),
    }
    return {name: value for name, value in request.items() if value is not None}


class _Stderr:
    """Where structlog writes: whatever stderr is at the time of the line."""

    def __init__(self, room: str = "") -> None:
        self.room = room

    def msg(self, line: str) -> None:
        # A reader of stderr that went away must not take the exchange down that had something to say.
        with contextlib.suppress(OSError):
            sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = msg


class _Forward(logging.Handler):
    """Makes lines of what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        log = structlog.get_logger()
        log.log(level, record.getMessage(), library=record.name, exc_info=record.exc_info or None)

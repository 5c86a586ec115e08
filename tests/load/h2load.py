"""h2load: its command line, and what it writes. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Counts", "Load", "NotH2load", "Request", "parse_counts", "parse_log", "shortfall"]

_FINISHED = re.compile(r"^finished in ([0-9.]+)(us|ms|s|m|h),", re.MULTILINE)
_REQUESTS = re.compile(
    r"^requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
    re.MULTILINE,
)
_STATUS = re.compile(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", re.MULTILINE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class NotH2load(ValueError):
    """The text is not h2load's closing report, or its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to ask of h2load, but for where and how often."""

    connections: int = 1
    streams: int = 1
    body: Path | None = None
    window_bits: int | None = None
    """Receive windows of 2ⁿ − 1 octets, of streams and connections; None for h2load's own 2³⁰ − 1."""
    fields: Sequence[str] = ()
    per_second: int | None = None
    """Requests each connection starts in a second; None: as fast as they are answered."""
    http1: bool = False
    """Whether HTTP/1.1 is spoken."""

    def argv(self, program: str, url: str, requests: int, log: Path) -> list[str | Path]:
        """Return the command line."""
        argv: list[str | Path] = [program, f"-c{self.connections}", f"-m{self.streams}", f"-n{requests}"]
        argv += ["--log-file", log]
        if self.body is not None:
            argv += ["-d", self.body]
        if self.window_bits is not None:
            argv += [f"-w{self.window_bits}", f"-W{self.window_bits}"]
        if self.per_second is not None:
            argv += ["--rps", str(self.per_second)]
        if self.http1:
            argv += ["--h1"]
        for field in self.fields:
            argv += ["-H", field]
        return [*argv, url]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """h2load's own account of a run."""

    seconds: float
    total: int
    succeeded: int
    failed: int
    errored: int
    timed_out: int
    not_2xx: int


@dataclass(frozen=True, slots=True)
class Request:
    """A line of h2load's log: when it began (seconds since the epoch), how it went, how long it took."""

    started_at: float
    status: int
    microseconds: int


def parse_counts(text: str) -> Counts:
    """Return the counts of h2load's closing report; raises NotH2load."""
    finished, requests, status = _FINISHED.search(text), _REQUESTS.search(text), _STATUS.search(text)
    if not (finished and requests and status):
        raise NotH2load("h2load did not report how it ended")
    total, _, _, succeeded, failed, errored, timed_out = map(int, requests.groups())
    return Counts(
        seconds=float(finished[1]) * _UNITS[finished[2]],
        total=total,
        succeeded=succeeded,
        failed=failed,
        errored=errored,
        timed_out=timed_out,
        not_2xx=sum(map(int, status.groups()[1:])),
    )


def parse_log(text: str) -> list[Request]:
    """Return the requests of h2load's --log-file, in the order of their ends; raises NotH2load."""
    requests = []
    for line in text.splitlines():
        try:
            started, status, microseconds = line.split("\t")[:3]
            requests.append(Request(int(started) / 1e6, int(status), int(microseconds)))
        except ValueError:
            raise NotH2load(f"not a line of h2load's log: {line[:80]!r}") from None
    return requests


def shortfall(counts: Counts, asked: int) -> str | None:
    """Return what did not succeed, in words, or None when each of the `asked` requests got a 2xx."""
    if counts.succeeded == asked == counts.total and not counts.not_2xx:
        return None
    faults = {
        "failed": counts.failed - counts.errored,
        "broken off": counts.errored,
        "timed out": counts.timed_out,
        "without 2xx": counts.not_2xx,
    }
    named = ", ".join(f"{count} {name}" for name, count in faults.items() if count > 0)
    return f"{asked - min(asked, counts.succeeded)} of {asked} requests did not succeed ({named or 'never answered'})"

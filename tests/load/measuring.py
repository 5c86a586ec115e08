"""One measured run: what h2load did, and what the proxy used meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.load.contenders import Running
from tests.load.cost import busy_seconds
from tests.load.figures import percentile
from tests.load.h2load import Counts, Load, NotH2load, Request, parse_counts, parse_log, shortfall
from tests.load.places import Processors, locate, run_program
from tests.support.processes import ProgramFailed

__all__ = ["H2load", "Run", "Stopwatch", "Void", "latencies"]

_LONGEST_SECONDS: Final = 90.0


class Void(Exception):
    """A run whose figures do not count; the text says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What h2load did."""

    counts: Counts
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class H2load:
    """The program, on the processor that the proxy does not have."""

    folder: Path
    """For its log."""
    processors: Processors

    async def run(self, load: Load, url: str, requests: int) -> Run:
        """Return what came of so many requests; raises Void unless all succeeded, and Unavailable without h2load."""
        program_file = locate("h2load", "Debian's nghttp2-client")
        log = self.folder / "h2load.log"
        log.unlink(missing_ok=True)
        argv = self.processors.prefix(proxy=False) + load.argv(str(program_file), url, requests, log)
        async with run_program("h2load", argv) as program:
            try:
                await program.ended(within_seconds=_LONGEST_SECONDS)
                counts, lines = parse_counts("\n".join(program.lines)), parse_log(log.read_text())
            except ProgramFailed as exc:
                raise Void(f"h2load {exc.reason}") from exc
            except (NotH2load, OSError) as exc:
                raise Void(f"{exc}: {' '.join(program.tail(1).split())}") from exc
        if missing := shortfall(counts, requests):
            raise Void(missing)
        return Run(counts, lines)


class Stopwatch:
    """What a proxy, and others on its processor, use while something happens."""

    def __init__(self, target: Running, processors: Processors) -> None:
        self._target, self._processor = target, processors.proxy
        self._begun = time.perf_counter()
        self._busy = busy_seconds(self._processor)
        self._cpu = target.process.cpu_seconds()

    def figures(self, units: float, seconds: float) -> dict[str, float]:
        """Return CPU for each unit and shares of the processor; `seconds` is how long it took. Raises ProcessGone."""
        cpu = self._target.process.cpu_seconds() - self._cpu
        busy, wall = busy_seconds(self._processor) - self._busy, time.perf_counter() - self._begun
        return {"cpu_us": cpu * 1e6 / units, "busy": 100 * cpu / seconds, "others": 100 * max(0.0, busy - cpu) / wall}


def latencies(microseconds: Sequence[float], seconds: float, units: float) -> dict[str, float]:
    """Return p50 and p99 of the requests, and how many `units` a second they were. Raises ValueError without any."""
    return {
        "rate": units / seconds,
        "p50_us": percentile(microseconds, 0.50),
        "p99_us": percentile(microseconds, 0.99),
    }

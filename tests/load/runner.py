"""Runs the workloads and returns samples."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.load.contenders import (
    ROUTE,
    Contender,
    Running,
    Surroundings,
    admin_address,
    with_environment,
    with_more_routes,
)
from tests.load.cost import ProcessGone
from tests.load.figures import Sample, percentile
from tests.load.h2load import Load, Request
from tests.load.measuring import H2load, Stopwatch, Void, latencies
from tests.load.places import Processors, Unavailable
from tests.load.scraping import around_scrape, of_scrapes
from tests.load.streams import StreamFailed, StreamsClient
from tests.load.targets import COMPILED, PORTABLE
from tests.load.turns import Turns
from tests.load.upstreams import Google, Site, echo_upstream, google, static_upstream
from tests.load.workloads import (
    MEMORY,
    PING_PONGS,
    REFRESH,
    SCRAPE,
    SCRAPED_ROUTES,
    LoadKind,
    Plan,
    StreamsKind,
    load_kinds,
)
from tests.support.processes import Program, ProgramFailed

__all__ = ["DIRECT", "Runner", "around_refreshes", "order"]

DIRECT: Final = "direct"
"""Stands for no proxy at all."""

_FIRST_SECONDS: Final = 0.05
_SETTLE_SECONDS: Final = 0.5
_REFRESH_TOKEN_SECONDS: Final = 64
_REFRESH_CONNECTIONS: Final = 4
_REFRESH_RATE: Final = 250
_NEAR_SECONDS: Final = 0.25
_QUIET_SECONDS: Final = 0.5
_LONGEST_SCRAPE_SECONDS: Final = 60.0
_ECHO: Final = f"/{ROUTE}/echo"
_SCRAPE: Final = Load(http1=True)


def order(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    """Return the contenders in the order of one round: each begins with another, and every second goes backwards."""
    step = -1 if turn % 2 else 1
    return [contenders[(turn + step * place) % len(contenders)] for place in range(len(contenders))]


def around_refreshes(requests: Sequence[Request], refreshes: Sequence[float]) -> tuple[list[int], list[int]]:
    """Return how long, in microseconds, the requests near any refresh took, and all others."""
    near: list[int] = []
    away: list[int] = []
    for request in requests:
        begun, ended = request.started_at, request.started_at + request.microseconds / 1e6
        is_near = any(begun - _NEAR_SECONDS <= moment <= ended + _NEAR_SECONDS for moment in refreshes)
        (near if is_near else away).append(request.microseconds)
    return near, away


@dataclass
class Runner:
    """One benchmark run; `samples` grow as it goes."""

    plan: Plan
    site: Site
    processors: Processors
    google: Google
    h2load: H2load
    contenders: Sequence[Contender]
    wanted: Collection[str]
    """Keys of the workloads to run; none: all."""
    say: Callable[[str], None]
    samples: list[Sample] = field(default_factory=list)

    async def run(self) -> None:
        """Run everything that is wanted."""
        kinds = [kind for kind in load_kinds(self.site.small, self.site.body) if self._wants(kind.key)]
        for narrow in (False, True):
            stage = [kind for kind in kinds if kind.narrow is narrow]
            if stage:
                async with static_upstream(self.site, self.processors, window_bits=16 if narrow else None) as port:
                    await self._loads(stage, port)
        ping_pongs = [kind for kind in PING_PONGS if self._wants(kind.key)]
        if ping_pongs:
            async with echo_upstream(self.site, self.processors) as (_, port):
                await self._ping_pongs(ping_pongs, port)
        if self._wants(MEMORY.key):
            async with echo_upstream(self.site, self.processors) as (_, port):
                await self._memory(port)
        if self._wants(REFRESH.key):
            await self._refresh()
        if self._wants(SCRAPE.key):
            await self._scrapes()

    def _wants(self, key: str) -> bool:
        return not self.wanted or key in self.wanted

    # ---- the stage

    async def _surroundings(self, upstream_port: int, google: Google | None = None) -> Surroundings:
        source = google or self.google
        return Surroundings(
            folder=self.site.folder,
            processors=self.processors,
            upstream_port=upstream_port,
            ca_file=self.site.certificates.ca_file,
            google=source.environment,
            authorization=await source.authorization(upstream_port),
        )

    @asynccontextmanager
    async def _all_running(self, upstream_port: int) -> AsyncIterator[tuple[Surroundings, Mapping[str, Running]]]:
        """Run all contenders at once: those without requests cost nothing."""
        around = await self._surroundings(upstream_port)
        async with AsyncExitStack() as stack:
            running = {}
            for contender in self.contenders:
                try:
                    running[contender.key] = await stack.enter_async_context(contender.running(around))
                except ProgramFailed as exc:
                    self.say(f"{contender.label}: {exc.reason}; {' '.join(exc.program.tail(1).split())}")
            yield around, running

    def _add(self, workload: str, contender: str, turn: int, result: Mapping[str, float] | str) -> None:
        void = result if isinstance(result, str) else None
        values = {} if isinstance(result, str) else result
        self.samples.append(Sample(workload=workload, contender=contender, round=turn, values=values, void=void))
        if void:
            self.say(f"{contender} at {workload}: void, {void}")

    # ---- h2load

    async def _loads(self, kinds: Sequence[LoadKind], upstream_port: int) -> None:
        async with self._all_running(upstream_port) as (around, running):
            for kind in kinds:
                self.say(kind.title)
                counts = {key: await self._speed(kind, target) for key, target in running.items()}
                for turn in range(self.plan.rounds):
                    direct = await self._direct(kind, around, turn) if kind.direct else {}
                    for contender in order([one for one in self.contenders if one.key in running], turn):
                        target = running[contender.key]
                        result = await self._load(kind, target, counts[contender.key], direct)
                        self._add(kind.key, contender.key, turn, result)

    async def _speed(self, kind: LoadKind, target: Running) -> int | str:
        """Return how many requests fill the time, after a first run that is not measured; or why that failed."""
        try:
            first = await self.h2load.run(kind.load, _url(target.port, kind.path), kind.first)
        except Void as exc:
            return str(exc)
        return max(kind.first, round(kind.first / first.counts.seconds * self.plan.seconds))

    async def _load(
        self, kind: LoadKind, target: Running, requests: int | str, direct: Mapping[str, float]
    ) -> dict[str, float] | str:
        if isinstance(requests, str):
            return requests
        try:
            made = await self._connections(kind, target) if kind.connected else 0.0
            watch = Stopwatch(target, self.processors)
            run = await self.h2load.run(kind.load, _url(target.port, kind.path), requests)
            used = watch.figures(requests * kind.units, run.counts.seconds)
        except (Void, ProcessGone) as exc:
            return _reason(target.program, exc)
        if kind.connected:
            rest = requests - kind.load.connections
            used["cpu_us"] = max(0.0, used["cpu_us"] * requests - made) / rest
        values = latencies(
            [request.microseconds for request in run.requests], run.counts.seconds, requests * kind.units
        )
        values |= used
        values |= {f"added_{key}": values[key] - direct[key] for key in ("p50_us", "p99_us") if key in direct}
        return values

    async def _connections(self, kind: LoadKind, target: Running) -> float:
        """Return the microseconds of CPU that a run takes which sends one request on each connection."""
        connections = kind.load.connections
        watch = Stopwatch(target, self.processors)
        run = await self.h2load.run(kind.load, _url(target.port, kind.path), connections)
        return watch.figures(1, run.counts.seconds)["cpu_us"]

    async def _direct(self, kind: LoadKind, around: Surroundings, turn: int) -> dict[str, float]:
        url = _url(around.upstream_port, kind.path, "https")
        token = f"x-serverless-authorization: {around.authorization}"
        load = Load(connections=kind.load.connections, streams=kind.load.streams, body=kind.load.body, fields=[token])
        try:
            first = await self.h2load.run(load, url, kind.first)
            requests = max(kind.first, round(kind.first / first.counts.seconds * self.plan.seconds))
            run = await self.h2load.run(load, url, requests)
        except Void as exc:
            self._add(kind.key, DIRECT, turn, str(exc))
            return {}
        values = latencies([request.microseconds for request in run.requests], run.counts.seconds, requests)
        self._add(kind.key, DIRECT, turn, values)
        return values

    # ---- streams

    async def _ping_pongs(self, kinds: Sequence[StreamsKind], upstream_port: int) -> None:
        async with self._all_running(upstream_port) as (_, running):
            for kind in kinds:
                self.say(kind.title)
                for turn in range(self.plan.rounds):
                    for contender in order([one for one in self.contenders if one.key in running], turn):
                        target = running[contender.key]
                        try:
                            result = await asyncio.to_thread(self._bounce, target, kind.streams)
                        except (StreamFailed, ProcessGone, OSError) as exc:
                            self._add(kind.key, contender.key, turn, _reason(target.program, exc))
                        else:
                            self._add(kind.key, contender.key, turn, result)

    def _bounce(self, target: Running, streams: int) -> dict[str, float]:
        with StreamsClient(target.port, _ECHO) as client:
            client.open(streams)
            client.bounce(_FIRST_SECONDS)
            watch = Stopwatch(target, self.processors)
            trips, took, each = client.bounce(self.plan.seconds)
            used = watch.figures(trips, took)
        return latencies([one * 1e6 for one in each], took, trips) | used

    async def _memory(self, upstream_port: int) -> None:
        self.say(f"{MEMORY.title} ({self.plan.memory_connections * self.plan.memory_streams:,} streams)")
        around = await self._surroundings(upstream_port)
        for turn in range(self.plan.memory_rounds):
            for contender in order(self.contenders, turn):
                try:
                    async with contender.running(around) as target:
                        result: dict[str, float] | str
                        try:
                            result = await self._resident(target)
                        except (StreamFailed, ProcessGone, OSError) as exc:
                            result = _reason(target.program, exc)
                except ProgramFailed as exc:
                    result = exc.reason
                self._add(MEMORY.key, contender.key, turn, result)

    async def _resident(self, target: Running) -> dict[str, float]:
        connections, streams = self.plan.memory_connections, self.plan.memory_streams
        await asyncio.to_thread(_touch, target.port)
        await asyncio.sleep(_SETTLE_SECONDS)
        idle = target.process.rss_octets()
        async with AsyncExitStack() as stack:
            for _ in range(connections):
                client = stack.enter_context(StreamsClient(target.port, _ECHO))
                await asyncio.to_thread(client.open, streams)
            await asyncio.sleep(_SETTLE_SECONDS)
            full = target.process.rss_octets()
        return {"rss_mib": idle / (1 << 20), "stream_kib": (full - idle) / 1024 / (connections * streams)}

    # ---- tokens

    @property
    def _sidecars(self) -> list[Contender]:
        return [contender for contender in self.contenders if contender.key in (COMPILED, PORTABLE)]

    async def _refresh(self) -> None:
        if not self._sidecars:
            return
        self.say(REFRESH.title)
        folder = self.site.folder / "short"
        async with google(folder, self.processors, token_seconds=_REFRESH_TOKEN_SECONDS) as short:
            for contender in self._sidecars:
                async with echo_upstream(self.site, self.processors) as (upstream, port):
                    around = await self._surroundings(port, short)
                    try:
                        async with contender.running(around) as target:
                            result = await self._across_refreshes(target, upstream)
                    except ProgramFailed as exc:
                        result = exc.reason
                self._add(REFRESH.key, contender.key, 0, result)

    async def _across_refreshes(self, target: Running, upstream: Program) -> dict[str, float] | str:
        load = Load(connections=_REFRESH_CONNECTIONS, streams=8, body=self.site.small, per_second=_REFRESH_RATE)
        requests = _REFRESH_CONNECTIONS * _REFRESH_RATE * self.plan.refresh_seconds
        url = _url(target.port, _ECHO)
        try:
            await self.h2load.run(load, url, 100)
            watch = Stopwatch(target, self.processors)
            run = await self.h2load.run(load, url, requests)
            used = watch.figures(requests, run.counts.seconds)
        except (Void, ProcessGone) as exc:
            return _reason(target.program, exc)
        begun = min(request.started_at for request in run.requests)
        seen = [float(found[1]) for line in upstream.lines if (found := re.match(r"token ([0-9.]+)$", line))]
        refreshes = [moment for moment in seen if moment > begun]
        near, away = around_refreshes(run.requests, refreshes)
        if not near or not away:
            return f"{len(refreshes)} refreshes in {self.plan.refresh_seconds} s are not what was to be seen"
        return {
            "refresh_p99_us": percentile(near, 0.99),
            "p99_us": percentile(away, 0.99),
            "refreshes": len(refreshes),
            **used,
        }

    # ---- metrics

    async def _scrapes(self) -> None:
        self.say(SCRAPE.title)
        async with echo_upstream(self.site, self.processors) as (_, port):
            around = await self._surroundings(port)
            for contender in self._sidecars:
                try:
                    turns = await Turns.create(self.site.folder)
                    loaded = with_environment(with_more_routes(contender, SCRAPED_ROUTES), turns.environment)
                    async with loaded.running(around) as target:
                        url = f"http://{await admin_address(target)}/metrics"
                        # Both load what is needed from the first one on.
                        await asyncio.to_thread(_touch, target.port)
                        await self.h2load.run(_SCRAPE, url, 1)
                        found = [await self._across_scrape(target, turns, url) for _ in range(self.plan.scrapes)]
                        self._add(SCRAPE.key, contender.key, 0, of_scrapes(found))
                except (Unavailable, Void, ProgramFailed, StreamFailed, OSError) as exc:
                    self._add(SCRAPE.key, contender.key, 0, str(exc))

    async def _across_scrape(self, target: Running, turns: Turns, url: str) -> dict[str, float] | str:
        over, pid = threading.Event(), target.program.pid

        def bounce() -> tuple[float, list[float]]:
            with StreamsClient(target.port, _ECHO) as client:
                client.open(1)
                return time.time(), client.bounce(_LONGEST_SCRAPE_SECONDS, over)[2]

        result: dict[str, float] | str = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                bouncing = tasks.create_task(asyncio.to_thread(bounce))
                try:
                    turns.forget(pid)
                    await asyncio.sleep(_QUIET_SECONDS)
                    quiet = turns.measured(pid)
                    turns.forget(pid)
                    scrape = (await self.h2load.run(_SCRAPE, url, 1)).requests[0]
                    scraping = turns.measured(pid)
                finally:
                    over.set()
                trips = around_scrape(*await bouncing, scrape)
                longest = {"turn_us": scraping.longest_us, "quiet_turn_us": quiet.longest_us}
                result = trips if isinstance(trips, str) else {**longest, **trips}
        except* (Void, StreamFailed, OSError) as failed:
            result = _reason(target.program, failed.exceptions[0])
        return result


def _url(port: int, path: str, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{port}{path}"


def _reason(program: Program, exc: Exception) -> str:
    return f"it ended with {program.returncode}" if program.returncode is not None else str(exc) or repr(exc)


def _touch(port: int) -> None:
    with StreamsClient(port, _ECHO) as client:
        client.open(1)

"""Brings everything up, lets it go wrong, and judges."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer, Limits
from tests.soak.acts import Acts
from tests.soak.bank import Clients, bank
from tests.soak.network import Hop
from tests.soak.sidecars import Resources, Sidecars
from tests.support.ports import free_port
from tests.support.restate_server import RestateServer

__all__ = ["Plan", "Report", "growth", "soak"]

_TOKEN_SECONDS = 62
_CONNECTION_SECONDS = 5.0
"""How long the emulated front end keeps a connection before it says GOAWAY."""
_COMPLETE_SECONDS = 300.0
_PATIENCE = aiohttp.ClientTimeout(total=_COMPLETE_SECONDS)
_SETTLING_SECONDS = 20
_QUIET_INVOCATIONS = 40
_MEMORY_SLACK = 8 << 20
_FILES_SLACK = 8
_THREADS_SLACK = 3
_ROUTE = "bank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do."""

    seconds: float = 60.0
    """How long things go wrong, at least; the round that has begun is finished."""
    per_second: float = 5.0
    """Invocations started."""
    seed: int = 1
    workers: int = 2
    engine: str = "auto"
    restarts: bool = True
    """Whether the sidecar is replaced, restarted and killed, too."""
    pace: float = 1.0
    """What the durations of all that goes wrong are multiplied with."""


@dataclass
class Report:
    """What happened."""

    completed: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    sidecars: int = 0
    mints: int = 0
    cuts: int = 0
    seconds: float = 0.0
    soaked: Resources | None = None
    """Of the sidecar that has lived through the last round, once nothing was left to do."""
    fresh: Resources | None = None
    """Of a new one that has had some invocations and nothing else."""
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return it for people."""
        told = [f"  {count:8,}  {kind}" for kind, count in sorted(self.completed.items())]
        told += [f"  {count:8,}  {name}" for name, count in sorted(self.acts.items())]
        told.append(
            f"{self.completed.total():,} invocations in {self.seconds:,.0f} s, {self.sidecars:,} sidecars, "
            f"{self.mints:,} tokens, {self.cuts:,} connections cut"
        )
        for name, there in (("soaked", self.soaked), ("new", self.fresh)):
            if there is not None:
                told.append(
                    f"{name}: {there.octets / (1 << 20):.1f} MiB, {there.files} open files, {there.threads} threads"
                )
        return told


def growth(soaked: Resources, fresh: Resources) -> list[str]:
    """Return in what the sidecar has more than a new one, beyond what differs between two new ones."""
    pairs = (
        ("octets of memory", soaked.octets, fresh.octets * 1.1 + _MEMORY_SLACK),
        ("open files", soaked.files, fresh.files + _FILES_SLACK),
        ("threads", soaked.threads, fresh.threads + _THREADS_SLACK),
    )
    return [f"{has:,} {name}, and a new sidecar needs at most {most:,.0f}" for name, has, most in pairs if has > most]


@dataclass(frozen=True, slots=True)
class _Stage:
    restate: RestateServer
    sidecars: Sidecars
    before: Hop
    behind: Hop
    google: Google


async def soak(plan: Plan, folder: Path) -> Report:
    """Carry out a plan, with all files in `folder`; what is wrong is in the report."""
    report = Report()
    started = time.monotonic()
    chance = random.Random(plan.seed)
    async with _stage(plan, folder) as it, AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=_PATIENCE, connector=aiohttp.TCPConnector(limit=0))
        )
        clients = Clients(replace(it.restate, http=http), random.Random(plan.seed + 1), plan.per_second)
        acts = Acts(
            it.sidecars, it.before, it.behind, it.google, chance,
            workers=plan.workers, restarts=plan.restarts, pace=plan.pace,
        )  # fmt: skip
        async with asyncio.TaskGroup() as quiet:
            for _ in range(_QUIET_INVOCATIONS):
                quiet.create_task(it.restate.invoke("Letters", "copy", "quiet"))
        report.fresh = await _settled(it.sidecars)
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(clients.run())
            await acts.run(asyncio.get_running_loop().time() + plan.seconds)
            clients.stop()
            async with asyncio.timeout(_COMPLETE_SECONDS):
                await working
        report.completed, report.acts = clients.completed, acts.done
        await clients.check()
        report.soaked = await _settled(it.sidecars)
        report.mints = len(it.google.mints)
        report.cuts = it.before.cuts + it.behind.cuts
    report.sidecars = it.sidecars.starts
    report.seconds = time.monotonic() - started
    lost = {kind: count - clients.completed[kind] for kind, count in clients.started.items()}
    report.wrong = [f"{count} × {kind} did not complete" for kind, count in lost.items() if count]
    report.wrong += clients.wrong + it.sidecars.wrong + growth(report.soaked, report.fresh)
    return report


async def _settled(sidecars: Sidecars) -> Resources:
    """Wait until the number of open files does not change any more, and return what there is."""
    now = sidecars.resources()
    for _ in range(_SETTLING_SECONDS):
        before = now
        await asyncio.sleep(1.0)
        now = sidecars.resources()
        if now.files == before.files:
            break
    return now


@asynccontextmanager
async def _stage(plan: Plan, folder: Path) -> AsyncIterator[_Stage]:
    google = Google(token_lifetime_seconds=_TOKEN_SECONDS, slow_seconds=30.0)
    certificates = Certificates.create(folder / "google")
    behind_port, before_port, sidecar_port = free_port(), free_port(), free_port()
    url = f"https://127.0.0.1:{behind_port}"
    cloud_run = CloudRun(bank(), google, url=url, invokers=[google.metadata_account])
    limits = Limits(age_seconds=_CONNECTION_SECONDS, notice_seconds=0.2)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(
            CloudRunServer(cloud_run, certificates, names=("127.0.0.1",), limits=limits)
        )
        endpoints = await stack.enter_async_context(GoogleServer(google, certificates))
        behind = Hop(behind_port, int(service.url.rpartition(":")[2]))
        before = Hop(before_port, sidecar_port)
        await stack.enter_async_context(behind.running())
        await stack.enter_async_context(before.running())
        environment: dict[str, str | None] = {
            "GCE_METADATA_HOST": endpoints.metadata_address,
            "SSL_CERT_FILE": str(certificates.ca_file),
        }
        flags: list[str | Path] = ["--route", f"{_ROUTE}={url}", "--listen", f"127.0.0.1:{sidecar_port}"]
        flags += ["--workers", str(plan.workers), "--http2-engine", plan.engine, "--drain-timeout", "20"]
        flags += ["--takeover-socket", f"unix:{folder}/takeover"]
        sidecars = Sidecars(flags, environment)
        await stack.enter_async_context(sidecars.running())
        (folder / "restate").mkdir()
        restate = await stack.enter_async_context(RestateServer.running(folder / "restate"))
        answer = await restate.register(f"http://127.0.0.1:{before_port}/{_ROUTE}")
        assert answer.status == 201, answer.body
        yield _Stage(restate, sidecars, before, behind, google)

"""`python -m tests.soak.cluster`: kill and restart nodes of a Restate cluster, and its sidecars, under load."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import click

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from proxy.emulator.verdicts import Verdict
from tests.load.figures import percentile
from tests.soak.bank import Clients, bank
from tests.soak.conclusion import conclude
from tests.soak.nodes import Call, Nodes
from tests.soak.replicas import ROUTE, Replicas, sidecar_settings
from tests.support.signing_restate import SigningKey

__all__ = ["Phase", "Plan", "Report", "cluster", "unfair"]

_NODES: Final = 3
_SIDECARS: Final = 2
_FIRST_INVOCATIONS: Final = 120
"""So many that each of the partitions has some."""
_COMPLETE_SECONDS: Final = 180.0
_SIDECARS_RESTARTED: Final = "sidecars restarted, one after the other"
"""In this phase, the share of the last one is not judged: it may have started just before its end."""
_LEAST_SHARE: Final = 0.1
"""Of the requests of a phase, for each sidecar; one that never gets connections has none."""

Counts = Mapping[tuple[str, int], int]
"""Counters by name and process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do."""

    phase_seconds: float = 30.0
    """How long each of the six phases takes, at least."""
    per_second: float = 20.0
    """Invocations started."""
    connection_age_seconds: float = 8.0
    """Instead of the quarter of an hour in the manifest."""
    down_seconds: float = 4.0
    """After how long a killed process is replaced."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What happened in a part of the run."""

    name: str
    calls: tuple[Call, ...]
    """The invocations that completed."""
    longest_pause_seconds: float
    """Between two completions that follow each other."""
    requests: Mapping[str, int]
    """What each sidecar has answered."""
    attempts: Mapping[str, int]
    """Attempts of invocations that each node has started."""

    def lines(self) -> list[str]:
        """Return it for people."""
        seconds = [call.seconds for call in self.calls] or [math.inf]
        return [
            f"{self.name}: {len(self.calls):,} invocations, median {percentile(seconds, 0.5):.2f} s, "
            f"p99 {percentile(seconds, 0.99):.2f} s, longest {max(seconds):.1f} s; "
            f"at most {self.longest_pause_seconds:.1f} s without a completion",
            f"    {_shares(self.requests)}; attempts: {_shares(self.attempts)}",
        ]


@dataclass
class Report:
    """What happened."""

    phases: list[Phase] = field(default_factory=list)
    completed: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)
    failed_attempts: int = 0
    """Attempts of invocations that failed, on the nodes that live at the end; Restate has repeated them."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return it for people."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.completed.items()))
        repeats = ", ".join(f"{count:,} {failure}" for failure, count in sorted(self.repeats.items())) or "none"
        return [
            *(line for phase in self.phases for line in phase.lines()),
            f"{self.completed.total():,} invocations in {self.seconds:,.0f} s ({kinds})",
            f"calls that clients repeated on another node: {repeats}",
            f"attempts that failed and that Restate repeated: at least {self.failed_attempts:,}",
        ]


def unfair(phase: Phase) -> list[str]:
    """Return which sidecars had less than a tenth of the requests of a phase."""
    total = sum(phase.requests.values())
    return [
        f"{phase.name}: {name} had {count:,} of {total:,} requests"
        for name, count in phase.requests.items()
        if count < _LEAST_SHARE * total or not count
    ]


@dataclass(frozen=True, slots=True)
class _World:
    nodes: Nodes
    replicas: Replicas
    cloud_run: CloudRun
    http: aiohttp.ClientSession


async def cluster(plan: Plan, folder: Path) -> Report:
    """Carry out a plan, with all files in `folder`; what is wrong is in the report."""
    report = Report()
    chance = random.Random(plan.seed)
    async with _world(plan, folder) as it:
        report.wrong += await _unsigned(it)
        # Until each partition has a leader: after the start of a cluster that takes some seconds.
        await asyncio.gather(*(it.nodes.invoke("Letters", "copy", "first") for _ in range(_FIRST_INVOCATIONS)))
        clients = Clients(it.nodes, random.Random(plan.seed + 1), plan.per_second)
        replica = chance.randrange(_SIDECARS)
        node = chance.choice(it.nodes.names)

        async def replace_node() -> None:
            await it.nodes.end(node, signal.SIGKILL)
            await asyncio.sleep(plan.down_seconds)
            await it.nodes.start(node)

        async def restart_sidecars() -> None:
            for sidecars in it.replicas.each:
                await sidecars.restart()

        async def restart_nodes() -> None:
            for name in it.nodes.names:
                await it.nodes.end(name, signal.SIGTERM)
                await it.nodes.start(name)
                await it.nodes.joined()

        acts: tuple[tuple[str, Callable[[], Awaitable[None]] | None], ...] = (
            ("all run", None),
            (
                f"sidecar {replica + 1} killed, replaced after {plan.down_seconds:g} s",
                partial(it.replicas.each[replica].kill, down_seconds=plan.down_seconds),
            ),
            (f"node {node} killed, replaced after {plan.down_seconds:g} s", replace_node),
            (_SIDECARS_RESTARTED, restart_sidecars),
            ("nodes restarted, one after the other", restart_nodes),
            ("all run again", None),
        )
        async with asyncio.TaskGroup() as tasks:
            started = time.monotonic()
            working = tasks.create_task(clients.run())
            for name, act in acts:
                report.phases.append(await _phase(it, name, act, plan.phase_seconds))
            clients.stop()
            async with asyncio.timeout(_COMPLETE_SECONDS):
                await working
        report.seconds = time.monotonic() - started
        await it.nodes.joined()
        await clients.check()
        report.failed_attempts = sum((await it.nodes.attempts("failed")).values())
        report.completed, report.repeats = clients.completed, it.nodes.repeats
        lost = {kind: count - clients.completed[kind] for kind, count in clients.started.items()}
        report.wrong += [f"{count} × {kind} did not complete" for kind, count in lost.items() if count]
        report.wrong += clients.wrong
        report.wrong += [
            f"Cloud Run refused {count} requests: {verdict.value}"
            for verdict, count in it.cloud_run.verdicts.items()
            if verdict is not Verdict.ACCEPTED
        ]
    report.wrong += [sentence for sidecars in it.replicas.each for sentence in sidecars.wrong]
    report.wrong += [
        sentence for phase in report.phases if phase.name != _SIDECARS_RESTARTED for sentence in unfair(phase)
    ]
    return report


async def _phase(it: _World, name: str, act: Callable[[], Awaitable[None]] | None, seconds: float) -> Phase:
    """Do something, and let the load go on until the time is over and it is done."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    began, first = time.monotonic(), len(it.nodes.calls)
    requests, attempts = await it.replicas.requests(it.http), await it.nodes.attempts("started")
    if act is not None:
        await act()
    await asyncio.sleep(max(0.0, end - loop.time()))
    calls = tuple(it.nodes.calls[first:])
    moments = [began, *(call.finished_at for call in calls), time.monotonic()]
    return Phase(
        name=name,
        calls=calls,
        longest_pause_seconds=max(later - earlier for earlier, later in itertools.pairwise(moments)),
        requests=_since(requests, await it.replicas.requests(it.http)),
        attempts=_since(attempts, await it.nodes.attempts("started")),
    )


async def _unsigned(it: _World) -> list[str]:
    """Return what is wrong with the response to a request that Restate has not signed."""
    url = f"http://127.0.0.1:{it.replicas.port}/{ROUTE}/discover"
    async with it.http.get(url) as response:
        return [] if response.status == 401 else [f"an unsigned request was answered with {response.status}"]


def _since(before: Counts, now: Counts) -> dict[str, int]:
    """Return by how much counters have grown, by name; a new process began at 0."""
    return {name: count - before.get((name, pid), 0) for (name, pid), count in now.items()}


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values()) or 1
    return ", ".join(f"{name} {count:,} ({count / total:.0%})" for name, count in counts.items())


@asynccontextmanager
async def _world(plan: Plan, folder: Path) -> AsyncIterator[_World]:
    google, key = Google(), SigningKey()
    certificates = Certificates.create(folder / "google")
    cloud_run = CloudRun(bank(), google, invokers=[google.metadata_account])
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        service = await stack.enter_async_context(CloudRunServer(cloud_run, certificates))
        endpoints = await stack.enter_async_context(GoogleServer(google, certificates))
        settings = sidecar_settings(
            identity_key=key.public, url=service.url, connection_age_seconds=plan.connection_age_seconds
        )
        environment = {"GCE_METADATA_HOST": endpoints.metadata_address, "SSL_CERT_FILE": str(certificates.ca_file)}
        replicas = Replicas(folder, settings, environment, _SIDECARS)
        await stack.enter_async_context(replicas.running())
        nodes = Nodes(folder, key.write(folder / "identity.pem"), _NODES)
        await stack.enter_async_context(nodes.running())
        answer = await nodes.register(f"http://127.0.0.1:{replicas.port}/{ROUTE}")
        if answer.status != 201:
            raise RuntimeError(f"the registration was answered with {answer.status}: {answer.body}")
        yield _World(nodes, replicas, cloud_run, http)


@click.command()
@click.option(
    "--phase-seconds", type=click.FloatRange(5, 86_400), default=30, show_default=True, help="Of each of six."
)
@click.option("--rate", type=click.FloatRange(0.1, 10_000), default=20, show_default=True, help="Invocations a second.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the load, and of which process is killed.")
def main(phase_seconds: float, rate: float, seed: int) -> None:
    """Kill and restart sidecars and nodes of Restate; exit code 1 if an invocation is lost, doubled or wrong."""
    logging.disable()  # of the emulated services, whose connections break
    plan = Plan(phase_seconds=phase_seconds, per_second=rate, seed=seed)
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        report = asyncio.run(cluster(plan, Path(folder)))
    conclude(report.lines(), report.wrong)


if __name__ == "__main__":
    main(prog_name="python -m tests.soak.cluster")

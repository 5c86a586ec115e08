"""`python -m tests.load.bench`: the sidecar beside other proxies at the same work, and what it is held to.

What is measured
    CPU of the proxy's process per request (or MiB, or round trip), latency, what a proxy adds to the latency of one
    request at a time, throughput, resident memory idle and for each open idle stream, what a token refresh does to
    the latency under load, and how long streams wait at most while the metrics of thousands of routes are read.
    `tests.load.workloads` has the list, `tests.load.targets` what must come out.

How
    The proxy under test has a processor for itself; load, upstream, emulated Google and this program share the other.
    Every proxy has one worker, takes h2c, verifies the upstream's certificate, speaks ALPN h2 to it, and adds a token:
    the sidecar one that it mints at the emulated metadata server, the others a static one of the same Google for the
    same audience, so that the octets are equal (`tests.load.peer_configs`). Access logs are off.
    All proxies run at once, and each round asks them one after the other, in another order each time; the figure is the
    median of the rounds, ± half of what lies between the least and the greatest. How many requests make a round is
    found out for each proxy by a first, unmeasured run, so that all runs take about as long.
    CPU is the process' own clock, all threads and kernel time in it, to the nanosecond; where connections are many,
    what a run takes that sends one request on each is taken off. How long streams wait for a scrape is the processor
    time of the longest turn of the event loop, from one call of epoll to the next (`turns`): the least of several
    scrapes, because what the program takes at a stretch, it takes in each. Memory is measured on fresh processes, after
    one request, and again with all streams open. Latency is each request's, from h2load's log.
    One request that does not succeed makes the figures of its proxy at that workload void, and the table says so.

What not
    Load and upstream have one processor: where a proxy is faster than these, it waits, its throughput is their limit
    (`≥`), and its CPU per request is higher than it would be under full load, because it finds less to do each time it
    wakes. Nothing crosses a network. h2load repeats the same fields, which flatters header compression everywhere.
    The peers do not rewrite the path, mint or refresh.

`--quick` takes less than three minutes, and its p99 mean little. What cannot be had here is named and left out. Figures
of a machine that does something else at the same time are worth nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from tests.load.chart import chart
from tests.load.contenders import Contender, Surroundings, contenders
from tests.load.figures import Sample, summarize
from tests.load.measuring import H2load
from tests.load.places import Processors, Unavailable, python_build
from tests.load.report import document, table, verdicts
from tests.load.runner import DIRECT, Runner
from tests.load.targets import COMPILED, PORTABLE, judge
from tests.load.upstreams import Site, echo_upstream, google
from tests.load.workloads import KEYS, MEMORY, PING_PONGS, REFRESH, SCRAPE, Plan, load_kinds

ENGINES: Final = {"both": (COMPILED, PORTABLE), "nghttp2": (COMPILED,), "h2": (PORTABLE,)}
DISTURBED: Final = 3.0
"""Per cent of the proxy's processor that others may use before the figures are no good."""
PEERS: Final = [contender.key for contender in contenders() if contender.key not in ENGINES["both"]]


class Progress:
    """Says on standard error what is going on, and since when."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        click.echo(f"{minutes:2}:{seconds:02}  {text}", err=True)


def _machine(processors: Processors) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "processors": os.cpu_count(),
        "proxy_apart_from_load": processors.apart,
        "kernel": platform.release(),
        "python": python_build(),
    }


async def _available(
    wanted: Sequence[Contender], site: Site, processors: Processors, say: Progress
) -> tuple[list[Contender], dict[str, str], dict[str, str]]:
    """Return the contenders that can be started here, their versions, and why the others cannot."""
    there: list[Contender] = []
    versions: dict[str, str] = {}
    absent: dict[str, str] = {}
    async with google(site.folder / "trial", processors) as source, echo_upstream(site, processors) as (_, port):
        around = Surroundings(
            folder=site.folder,
            processors=processors,
            upstream_port=port,
            ca_file=site.certificates.ca_file,
            google=source.environment,
            authorization=await source.authorization(port),
        )
        for contender in wanted:
            try:
                versions[contender.key] = await contender.check(around)
            except Unavailable as exc:
                absent[contender.key] = str(exc)
                say(f"left out: {contender.label}, {exc}")
            else:
                there.append(contender)
                say(f"{contender.label}: {versions[contender.key]}")
    return there, versions, absent


async def _bench(plan: Plan, wanted: Sequence[Contender], only: Sequence[str], folder: Path) -> dict[str, Any]:
    say, processors = Progress(), Processors.of_this_machine()
    os.sched_setaffinity(0, {processors.rest})
    if not processors.apart:
        say("there is one processor: proxy, load and upstream share it, and the figures will be poor")
    site = Site.create(folder)
    there, versions, absent = await _available(wanted, site, processors, say)
    if not there:
        raise Unavailable("no proxy could be started")
    async with google(folder / "google", processors) as source:
        runner = Runner(plan, site, processors, source, H2load(folder, processors), there, only, say)
        await runner.run()
    say("done")
    labels = {contender.key: contender.label for contender in there} | {DIRECT: "no proxy"}
    return {
        "samples": runner.samples,
        "labels": labels,
        "kinds": [*load_kinds(site.small, site.body), *PING_PONGS, MEMORY, REFRESH, SCRAPE],
        "about": {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": _machine(processors),
            "plan": dataclasses.asdict(plan),
            "versions": versions,
            "left_out": absent,
        },
    }


def _publish(found: dict[str, Any], out: Path, *, quick: bool) -> None:
    """Print the tables and write bench.json and bench.svg."""
    samples, labels, kinds = found["samples"], found["labels"], found["kinds"]
    summaries = summarize(samples)
    reference = COMPILED if COMPILED in labels else PORTABLE
    judged = judge(summaries)
    click.echo(found["about"]["machine"]["python"] + "\n")
    for kind in kinds:
        if kind.key in summaries:
            click.echo(table(kind, summaries[kind.key], labels, reference) + "\n")
    click.echo(verdicts(judged, {contender.key: contender.label for contender in contenders()}))
    if warning := _disturbance(samples):
        click.echo(f"\n{warning}")
    out.mkdir(parents=True, exist_ok=True)
    about = {**found["about"], "quick": quick}
    whole = document(about=about, kinds=kinds, summaries=summaries, judged=judged, samples=samples)
    (out / "bench.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "bench.svg").write_text(
        chart(
            summaries, labels, title="cloudrun-sidecar beside other proxies", notes=_notes(about, labels, quick=quick)
        )
    )
    click.echo(f"\n{out / 'bench.json'}, {out / 'bench.svg'}")


def _notes(about: dict[str, Any], labels: dict[str, str], *, quick: bool) -> list[str]:
    machine, rounds = about["machine"], about["plan"]["rounds"]
    peers = ", ".join(f"{labels[key]} {version}" for key, version in about["versions"].items() if key in PEERS)
    return [
        "h2c in, a token added, verified TLS and HTTP/2 out; one worker each, on a processor of its own.",
        f"{'Quick run, median' if quick else 'Median'} of {rounds}, {machine['cpu']}, {about['at'][:10]}. {peers}.",
    ]


def _disturbance(samples: Sequence[Sample]) -> str | None:
    """Return a warning when other programs used the proxy's processor, or None."""
    shares = [sample.values["others"] for sample in samples if "others" in sample.values]
    share = statistics.median(shares) if shares else 0.0
    if share < DISTURBED:
        return None
    return f"Other programs used {share:.0f} % of the proxy's processor meanwhile: these figures are not to be quoted."


async def _until_told(work: Any) -> Any:
    """Await `work`; SIGTERM ends it as Ctrl-C does, everything that was started included."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


@click.command()
@click.option("--quick", is_flag=True, help="Less than three minutes, at the price of precision.")
@click.option("--engine", type=click.Choice(list(ENGINES)), default="both", show_default=True, help="Of the sidecar.")
@click.option(
    "--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Only this proxy beside the sidecar; repeatable."
)
@click.option("--only", multiple=True, type=click.Choice(KEYS), help="Only this workload; repeatable.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Rounds of each workload.")
@click.option("--seconds", type=click.FloatRange(0.05, 60), help="Length of each measured run.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("build/bench"), show_default=True, help="Where bench.json and bench.svg go.")  # fmt: skip  # noqa: E501 – one option, one line
def main(
    quick: bool,
    engine: str,
    peers: tuple[str, ...],
    only: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    out: Path,
) -> None:
    """Measure the sidecar beside other proxies and print tables with ratios."""
    plan = Plan.quick() if quick else Plan.full()
    plan = dataclasses.replace(
        plan, rounds=rounds or plan.rounds, seconds=seconds or plan.seconds, scrapes=rounds or plan.scrapes
    )
    keys = {*ENGINES[engine], *(peers or PEERS)}
    wanted = [contender for contender in contenders() if contender.key in keys]
    try:
        with tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-bench-") as folder:
            found = asyncio.run(_until_told(_bench(plan, wanted, only, Path(folder))))
    except Unavailable as exc:
        raise click.ClickException(f"{exc}.") from exc
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    _publish(found, out, quick=quick)


if __name__ == "__main__":
    main(prog_name="python -m tests.load.bench")

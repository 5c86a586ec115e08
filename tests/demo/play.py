"""The demo as a command: its options, its signals, and what it says when it fails."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import click
from click.core import ParameterSource

from tests.demo.stage import Ports, PortTaken, Stage
from tests.demo.story import StepFailed, set_up, show, show_next
from tests.support.processes import Program, ProgramFailed
from tests.support.restate_server import find_restate_server

INTERRUPTED = 130


class Play:
    """One run of the demo. An interruption aborts the story, or ends the stay after it."""

    def __init__(self, ports: Ports, *, once: bool) -> None:
        self._ports = ports
        self._once = once
        self._over = asyncio.Event()
        self._shown = False

    async def run(self) -> None:
        """Start the programs, play the story, and stay unless `once`. All programs have ended on return."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._interrupted, task)
        with tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-demo-") as name:
            folder = Path(name)
            async with AsyncExitStack() as stack:
                stage = await set_up(stack, folder, self._ports)
                await show(stage)
                self._shown = True
                if not self._once:
                    show_next(stage, folder)
                    click.echo("\nCtrl-C stops everything.")
                    await self._stay(stage)

    def _interrupted(self, task: asyncio.Task[None]) -> None:
        click.echo("\nstopping")
        if self._shown:
            self._over.set()
        else:
            task.cancel()

    async def _stay(self, stage: Stage) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                programs = (stage.emulator, stage.sidecar.program, stage.restate.program)
                watches = [group.create_task(_ends_by_itself(program)) for program in programs]
                await self._over.wait()
                for watch in watches:
                    watch.cancel()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None


async def _ends_by_itself(program: Program) -> None:
    status = await program.ended(within_seconds=None)
    raise ProgramFailed(program, f"ended by itself, with {status}")


def report(reason: str, program: Program | None = None) -> int:
    """Print why the demo ended, with the last lines of the failed program; return the exit code."""
    click.echo(f"\n{click.style('The demo failed:', fg='red')} {reason}", err=True)
    if program is not None:
        click.echo(f"\nThe last lines of {program.name}:\n{program.tail()}", err=True)
    return 1


def run(ports: Ports, *, once: bool) -> int:
    """Run the demo. Return the exit code: 0, 1 if a step failed, 2 if it could not start, 130 if interrupted."""
    try:
        find_restate_server()
        ports.check()
        try:
            asyncio.run(Play(ports, once=once).run())
        except ProgramFailed:
            ports.check()  # Another program may have been faster; what ours say of it has their options.
            raise
    except (PortTaken, FileNotFoundError) as exc:
        click.echo(f"cannot start the demo: {exc}", err=True)
        return 2
    except StepFailed as exc:
        return report(str(exc), exc.program)
    except ProgramFailed as exc:
        return report(f"{exc.program.name} {exc.reason}", exc.program)
    except aiohttp.ClientError as exc:
        return report(str(exc))
    except asyncio.CancelledError:
        return INTERRUPTED
    return 0


def port(name: str, default: int, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for one port; `DEMO_…_PORT` in the environment sets it, too."""
    option = f"--{name.replace('_', '-')}-port"
    return click.option(
        option,
        name,
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        envvar=f"DEMO_{name.upper()}_PORT",
        show_envvar=True,
        help=f"Port of {what}.",
    )


@click.command()
@click.option("--once", is_flag=True, help="End after the answer.")
@click.option("--free-ports", is_flag=True, help="Listen on any free ports, except where one is given.")
@port("ingress", 8080, "Restate's ingress")
@port("restate_admin", 9070, "Restate's admin API")
@port("sidecar", 9081, "the sidecar")
@port("sidecar_admin", 9091, "the sidecar's admin plane")
@port("cloud_run", 8443, "the emulated Cloud Run service")
@port("metadata", 8081, "the emulated metadata server")
def main(*, once: bool, free_ports: bool, **ports: int) -> None:
    """A real restate-server calls a private (emulated) Cloud Run service through the sidecar."""
    source = click.get_current_context().get_parameter_source
    chosen = {
        name: 0 if free_ports and source(name) is ParameterSource.DEFAULT else port for name, port in ports.items()
    }
    sys.exit(run(Ports(**chosen), once=once))

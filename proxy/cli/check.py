"""`cloudrun-sidecar check`: runs the doctor; prints tables for people or (`--json`) JSON for programs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final, TextIO

import click

from proxy.cli.options import GroupedCommand, Unusable, chosen_routes, settings_flags, settings_from
from proxy.doctor.checking import Doctor
from proxy.doctor.rendering import TerminalStyle, render, route_path, summary, to_ascii
from proxy.doctor.report import Outcome, RouteReport, StepName, as_json, worst_outcome
from proxy.exit_codes import ExitCode
from proxy.http2.choice import EngineUnavailable
from proxy.observe.lines import configure_logging
from proxy.routes import Route
from proxy.settings import Settings

__all__ = ["check"]

_SHOWN: Final = frozenset({"upstream_ca", "connect_timeout", "mint_timeout", "http2_engine"})

_PIPE_COLUMNS: Final = 100
_MARKS: Final = "✔✘–→…·"

_EPILOG: Final = """\
Exit code: 0 all is well, or nothing worse than warnings; 1 something fails; 2 the settings cannot be used, or there is
no such route; 3 with --strict, there are warnings.

All other flags and variables of `serve` are taken as well and change nothing here: a command line that serves can be
checked by writing `check` in the place of `serve`.
"""


@click.command(cls=GroupedCommand, params=settings_flags(shown=_SHOWN), epilog=_EPILOG)
@click.argument("names", nargs=-1, metavar="[ROUTE]...")
@click.option("--json", "for_programs", is_flag=True, help="Print JSON (version 1) instead of a table.")
@click.option("--strict", is_flag=True, help="Exit with 3 if there are warnings.")
@click.option(
    "--timeout",
    "answer_timeout",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a service may take over an answer, cold start included.",
)
def check(
    names: tuple[str, ...],
    config: Path | None,
    for_programs: bool,
    strict: bool,
    answer_timeout: float,
    **flags: Any,
) -> None:
    """Try each ROUTE (all, if none is named) as the sidecar would, and say what is wrong and what mends it.

    Steps: credentials, token, DNS, TCP, TLS, HTTP/2; whether a request without a token is refused; the clock; and a
    signed discovery, as Restate makes one when a deployment is registered. Nothing is changed anywhere, and no token
    is shown.
    """
    settings = settings_from(config, flags).settings
    chosen = chosen_routes(settings, names)
    configure_logging("critical", "auto")  # The report has everything that would be logged.
    screen = _Screen(chosen, for_programs=for_programs)
    try:
        with asyncio.Runner() as runner:
            reports = runner.run(_examine(settings, chosen, answer_timeout, screen))
    except EngineUnavailable as exc:
        raise Unusable(str(exc)) from None
    screen.finish(reports)
    outcome = worst_outcome(report.outcome for report in reports)
    if outcome is Outcome.FAILED:
        raise SystemExit(ExitCode.FAILED)
    if strict and outcome is Outcome.WARNING:
        raise SystemExit(ExitCode.WARNINGS)


async def _examine(
    settings: Settings, routes: list[Route], answer_timeout: float, screen: _Screen
) -> list[RouteReport]:
    async with Doctor(settings, answer_timeout_seconds=answer_timeout, progress=screen.begins) as doctor:
        try:
            return await doctor.check_routes(routes, screen.show)
        finally:
            screen.clear()


class _Screen:
    """Writes reports to standard output and, if standard error is a terminal, a line of progress there."""

    def __init__(self, routes: list[Route], *, for_programs: bool) -> None:
        self._for_programs = for_programs
        self._terminal_style = _terminal_style(sys.stdout)
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._open: dict[str, str] = {route.name: "waiting" for route in routes}
        self._shown = 0

    def begins(self, route: Route, step: StepName) -> None:
        """Show that a step of a route begins."""
        self._open[route.name] = step
        self._draw()

    def show(self, report: RouteReport) -> None:
        """Print the report of a route; all routes before it are done."""
        self._open.pop(report.route, None)
        if self._for_programs:
            self._draw()
            return
        self.clear()
        gap = "\n" if self._shown else ""
        self._shown += 1
        click.echo(gap + render(report, self._terminal_style), nl=False, color=self._terminal_style.colour)
        self._draw()

    def finish(self, reports: list[RouteReport]) -> None:
        """Print the summary, or all reports as JSON."""
        if self._for_programs:
            click.echo(json.dumps(as_json(reports), indent=2))
        else:
            click.echo("\n" + summary(reports, self._terminal_style), nl=False, color=self._terminal_style.colour)

    def clear(self) -> None:
        """Remove the line of progress."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _draw(self) -> None:
        if not self._terminal or not self._open:
            return
        busy = ", ".join(f"{route_path(name)}: {step}" for name, step in self._open.items())
        line = f"checking {busy}"
        columns = shutil.get_terminal_size().columns - 1
        if len(line) > columns:
            line = f"{line[: columns - 3]}..."
        sys.stderr.write(f"\r\x1b[K{to_ascii(line)}")
        sys.stderr.flush()


def _terminal_style(out: TextIO) -> TerminalStyle:
    """Return the terminal capabilities of a stream (NO_COLOR: https://no-color.org)."""
    terminal = out.isatty()
    try:
        _MARKS.encode(out.encoding or "ascii")
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    return TerminalStyle(
        columns=shutil.get_terminal_size((_PIPE_COLUMNS, 24)).columns if terminal else _PIPE_COLUMNS,
        colour=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        ascii_only=ascii_only,
    )

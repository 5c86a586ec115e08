"""The screen of a check: reports on standard output as they come and, on a terminal, a line of progress."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from typing import Final, TextIO

import click

from proxy.doctor.rendering import TerminalStyle, render, to_ascii
from proxy.doctor.report import RouteReport, StepName
from proxy.exit_codes import shows_colours

__all__ = ["Screen", "terminal_style"]

_PIPE_COLUMNS: Final = 100
_MARKS: Final = "✔✘–→…·"


class Screen:
    """Writes reports to standard output and, if standard error is a terminal, a line of progress there.

    `names` are those of the subjects, in their order. With `silent` no report is written.
    """

    def __init__(self, names: Iterable[str], *, silent: bool = False) -> None:
        self.style = terminal_style(sys.stdout)
        self._silent = silent
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._open = dict.fromkeys(names, "waiting")
        self._shown = 0

    def begins(self, name: str, step: StepName) -> None:
        """Show that a step of a subject begins."""
        self._open[name] = step
        self._draw()

    def show(self, report: RouteReport) -> None:
        """Print the report of a subject; all subjects before it are done."""
        self._open.pop(report.route, None)
        if not self._silent:
            self.write("\n" * bool(self._shown) + render(report, self.style))
            self._shown += 1
        self._draw()

    def write(self, text: str) -> None:
        """Print lines of text in the place of the line of progress."""
        self.clear()
        click.echo(to_ascii(text) if self.style.ascii_only else text, nl=False, color=self.style.colour)

    def clear(self) -> None:
        """Remove the line of progress."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _draw(self) -> None:
        if not self._terminal or not self._open:
            return
        busy = ", ".join(f"/{name}: {step}" for name, step in self._open.items())
        line = f"checking {busy}"
        columns = shutil.get_terminal_size().columns - 1
        if len(line) > columns:
            line = f"{line[: columns - 3]}..."
        sys.stderr.write(f"\r\x1b[K{to_ascii(line)}")
        sys.stderr.flush()


def terminal_style(out: TextIO) -> TerminalStyle:
    """Return the terminal capabilities of a stream."""
    terminal = out.isatty()
    try:
        _MARKS.encode(out.encoding or "ascii")
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    return TerminalStyle(
        columns=shutil.get_terminal_size((_PIPE_COLUMNS, 24)).columns if terminal else _PIPE_COLUMNS,
        colour=shows_colours(out),
        ascii_only=ascii_only,
    )

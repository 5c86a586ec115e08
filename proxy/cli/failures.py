"""How every command says that it failed: `cloudrun-sidecar: SENTENCE` on standard error, and an exit code.

On a terminal that shows colours, the name of the program is red. Problems of one kind are listed below the sentence,
one a line, indented.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from proxy.exit_codes import ExitCode, error_line

__all__ = ["CommandFailed", "Unusable", "UsageFailed"]


class CommandFailed(click.ClickException):
    """The command failed: what it looks at or depends on does not work; exit code 1."""

    exit_code = ExitCode.FAILED

    def show(self, file: Any = None) -> None:
        """Print the message to standard error, after the name of the program."""
        _print(self.format_message())


class Unusable(CommandFailed):
    """The command cannot start with these settings or arguments; exit code 2."""

    exit_code = ExitCode.SETTINGS_UNUSABLE

    @classmethod
    def listing(cls, what: str, problems: Iterable[object]) -> Unusable:
        """Return an error with all problems with `what`, one per line."""
        lines = [f"  {problem}" for problem in problems]
        return cls("\n".join([f"{len(lines)} problem{'s' * (len(lines) > 1)} with {what}", *lines]))


class UsageFailed(click.UsageError):
    """The command line has a mistake; exit code 2."""

    def show(self, file: Any = None) -> None:
        """Print the message to standard error, and which help to read."""
        text = self.format_message().rstrip(".")
        path = "cloudrun-sidecar" if self.ctx is None else self.ctx.command_path
        end = "" if text.endswith("?") else ";"
        _print(f"{text[:1].lower()}{text[1:]}{end} `{path} --help` has all there is")


def _print(text: str) -> None:
    click.echo(error_line(text, sys.stderr), err=True, nl=False, color=True)

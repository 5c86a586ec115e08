"""How every command says that it failed: `cloudrun-sidecar: SENTENCE` on standard error, and an exit code.

On a terminal that shows colours, the name of the program is red. Several problems are listed below the sentence, one a
line, indented.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from proxy.exit_codes import ExitCode, error_line

__all__ = ["CommandFailed", "Gathered", "Unusable", "UsageFailed"]


class CommandFailed(click.ClickException):
    """The command failed: what it looks at or depends on does not work; exit code 1."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = problems or (message,)
        """What is wrong, one by one."""

    def show(self, file: Any = None) -> None:
        """Print the message to standard error, after the name of the program."""
        _print(self.format_message())


class Unusable(CommandFailed):
    """The command cannot start with these settings or arguments; exit code 2."""

    exit_code = ExitCode.SETTINGS_UNUSABLE

    @classmethod
    def listing(cls, what: str, problems: Sequence[str]) -> Unusable:
        """Return an error with all problems with `what`, one per line."""
        return cls(_listed(what, problems), problems)


class Gathered:
    """Gathers the mistakes of steps that do not depend on each other: each step is a `with` of it.

    A step that raises CommandFailed ends there, and the next one begins.
    """

    def __init__(self) -> None:
        self._found: list[CommandFailed] = []

    def __enter__(self) -> None:
        """Begin a step."""

    def __exit__(self, _: type[BaseException] | None, exc: BaseException | None, __: TracebackType | None) -> bool:
        """End a step, and keep what it found to be wrong."""
        if not isinstance(exc, CommandFailed):
            return False
        self._found.append(exc)
        return True

    def raise_found(self) -> None:
        """Raise what was found, or Unusable with all of it; return if that is nothing."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise Unusable.listing(
                "the settings and arguments", [problem for one in self._found for problem in one.problems]
            )


class UsageFailed(click.UsageError):
    """The command line has mistakes; exit code 2."""

    def __init__(self, mistakes: Sequence[str], ctx: click.Context | None) -> None:
        super().__init__("\n".join(mistakes), ctx)
        self._mistakes = [f"{text[:1].lower()}{text[1:].rstrip('.')}" for text in mistakes]

    def show(self, file: Any = None) -> None:
        """Print the mistakes to standard error, and which help to read."""
        path = "cloudrun-sidecar" if self.ctx is None else self.ctx.command_path
        read = f"`{path} --help` has all there is"
        if len(self._mistakes) > 1:
            _print(f"{_listed('the command line', self._mistakes)}\n{read}")
        else:
            (text,) = self._mistakes
            _print(f"{text}{'' if text.endswith('?') else ';'} {read}")


def _listed(what: str, problems: Sequence[str]) -> str:
    """Return a sentence with the number of problems with `what`, and the problems, one per line."""
    lines = [f"  {problem}" for problem in problems]
    return "\n".join([f"{len(lines)} problem{'s' * (len(lines) > 1)} with {what}", *lines])


def _print(text: str) -> None:
    click.echo(error_line(text, sys.stderr), err=True, nl=False, color=True)

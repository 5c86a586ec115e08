"""The group of all commands.

A command is imported when it is run: `serve` needs neither time nor memory for the emulator, and `healthcheck`, which
may run every few seconds, neither for `serve`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from proxy import __version__
from proxy.cli.failures import CommandFailed, UsageFailed
from proxy.cli.parsing import Mistakes
from proxy.cli.redaction import redact
from proxy.settings.layers import did_you_mean

__all__ = ["commands"]

_COMMANDS: Final = {
    "serve": "Run the sidecar.",
    "check": "Try every route, and say what is wrong and what mends it.",
    "register": "Check a deployment, and register it with Restate.",
    "token": "Show what is in a route's token, or print it.",
    "healthcheck": "Ask a running sidecar how it is; for images without a shell.",
    "wait": "Wait until a sidecar is ready.",
    "emulate": "Run a strict local Google (metadata server, IAM, Cloud Run) for development.",
}
"""Name and help of each command. Its module and its function have the same name."""

_ARGUMENTS: Final = f"{__name__}.arguments"


class _OnDemand(click.Group):
    """Imports a command when it is run, and lists all commands without importing them.

    Possible secrets are removed from usage errors, which name the help of the command that was called.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        arguments = list(args)  # click takes them off the list as it reads them
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:  # it shows the help, which has no argument
            raise
        except click.UsageError as exc:
            raise _redacted(exc, arguments) from None
        context.meta[_ARGUMENTS] = arguments
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            if exc.ctx is None and ctx.invoked_subcommand:  # click's parser does not know of contexts
                exc.ctx = click.Context(self, ctx, ctx.invoked_subcommand)
            raise _redacted(exc, ctx.meta[_ARGUMENTS]) from None
        except (click.Abort, KeyboardInterrupt, EOFError):
            raise CommandFailed("interrupted") from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"proxy.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - tells the type checker
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"There is no command {name!r}{did_you_mean(name, _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of commands without importing them."""
        names = [CompletionItem(name, help=text) for name, text in _COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _redacted(exc: click.UsageError, arguments: list[str]) -> click.UsageError:
    mistakes = exc.mistakes if isinstance(exc, Mistakes) else [exc]
    failed = UsageFailed([redact(_told(one), arguments) for one in mistakes], exc.ctx)
    failed.exit_code = exc.exit_code  # type: ignore[misc]  # that of `healthcheck`
    return failed


def _told(exc: click.UsageError) -> str:
    if not isinstance(exc, click.NoSuchOption):
        return exc.format_message()
    near = " or ".join(sorted(exc.possibilities or ()))
    if not near and (exc.ctx is None or exc.ctx.parent is None):
        return f"There is no option {exc.option_name} before the command; the options of a command come after its name"
    return f"There is no option {exc.option_name}{f'; did you mean {near}?' if near else ''}"


@click.group(
    "cloudrun-sidecar",
    cls=_OnDemand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cloudrun-sidecar", message="%(prog)s %(version)s")
def commands() -> None:
    """A signing sidecar for Restate on Google Cloud: h2c in, Google ID token added, HTTP/2 to private Cloud Run out."""

"""The commands there are, of click.

A command is imported when it is run. `serve` must not pay for the emulator, in memory or in time, and `healthcheck`,
which may run every few seconds, must not pay for `serve`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from proxy import __version__

__all__ = ["commands"]

_COMMANDS: Final = {
    "serve": "Run the sidecar.",
    "check": "Try every route, and say what is wrong and what mends it.",
    "token": "Show what is in a route's token, or print it.",
    "healthcheck": "Ask a running sidecar how it is; for images without a shell.",
    "emulate": "Run a strict local Google (metadata server, IAM, Cloud Run) for development.",
}
"""Each command is the object of its name in the module of its name."""


class _OnDemand(click.Group):
    """Imports a command when it is asked for, and lists them all without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"proxy.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - tells the type checker
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    "cloudrun-sidecar",
    cls=_OnDemand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cloudrun-sidecar", message="%(prog)s %(version)s")
def commands() -> None:
    """A signing sidecar for Restate on Google Cloud: h2c in, Google ID token added, HTTP/2 to private Cloud Run out."""

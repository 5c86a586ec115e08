"""`cloudrun-sidecar serve`: its flags and help. It runs in the process that reads the settings (`settings_process`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from proxy.cli.options import GroupedCommand, settings_flags, settings_from
from proxy.settings.plain import PlainSettings

__all__ = ["serve"]

_EPILOG: Final = """\
In the repository, config/routes.example.toml says more about every setting. Every flag is also a variable
(--drain-timeout is CLOUDRUN_SIDECAR_DRAIN_TIMEOUT), and a setting of the file (drain_timeout), where routes are tables.
Flags win over variables, and those over the file; routes of all three are joined by name.
"""


@click.command(cls=GroupedCommand, params=settings_flags(), epilog=_EPILOG)
@click.option("--print-config", is_flag=True, help="Show the settings that result, as TOML, and end.")
@click.pass_obj
def serve(send: Callable[[PlainSettings], None], /, config: Path | None, print_config: bool, **flags: Any) -> None:
    """Run the sidecar until SIGTERM.

    Restate reaches a route as http://HOST:9081/NAME; its Cloud Run service gets each request with a Google ID token.
    One service is enough to begin with:

        cloudrun-sidecar serve --route greeter=https://greeter-….run.app
    """
    loaded = settings_from(config, flags)
    if print_config:
        from proxy.settings.printing import dump_toml  # with its library, a tenth of a second of the start

        click.echo(dump_toml(loaded.settings, loaded.places), nl=False)
        return
    send(loaded.plain())

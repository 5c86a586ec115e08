"""`cloudrun-sidecar healthcheck`: makes one request to the admin port and prints one line; exit code 0 or 1."""

from __future__ import annotations

import http.client
import os
import re
from pathlib import Path
from typing import Any, Final

import click

from proxy.cli import probe
from proxy.cli.probe import DEFAULT_ADMIN, admin_address, ask
from proxy.exit_codes import ExitCode
from proxy.quoting import plain, quoted
from proxy.settings.layers import SettingsInvalid

__all__ = ["healthcheck"]

_PATH: Final = re.compile(r"[!-~]+")


@click.command()
@click.option("--admin", metavar="ADDR", help=f"Where the sidecar's admin port is. [default: as set, {DEFAULT_ADMIN}]")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings file that `serve` was given.")
@click.option("--path", default="/readyz", show_default=True, help="What to ask: /readyz, /livez or /startupz.")
def healthcheck(admin: str | None, config: Path | None, path: str) -> None:
    """Ask a running sidecar how it is: exit code 0 if it is well, else 1.

    It finds the admin port as `serve` does: --admin, CLOUDRUN_SIDECAR_ADMIN, the settings file, the default. For
    HEALTHCHECK and exec probes of images without a shell.
    """
    try:
        address = admin_address(admin, config, os.environ)
        _check_path(path)
    except (ValueError, SettingsInvalid) as exc:
        raise _Unhealthy(str(exc)) from None
    try:
        status, words = ask(address, path)
    except TimeoutError:
        raise _Unhealthy(f"{address}{path}: no answer within {probe.TIMEOUT_SECONDS:g} s") from None
    except OSError as exc:
        raise _Unhealthy(f"{address}{path}: {exc.strerror or exc}") from None
    except http.client.HTTPException:
        raise _Unhealthy(f"{address}{path}: what answers there does not speak HTTP") from None
    if status != 200:
        raise _Unhealthy(f"{address}{path}: {status} {words}")
    click.echo(f"{address}{path}: {words}")


def _check_path(path: str) -> None:
    """Raise ValueError unless the path can be requested and shown."""
    if not path.startswith("/") or not _PATH.fullmatch(path) or plain(path) is None:
        raise ValueError(f"--path must be the path of a URL, as in /readyz, not {quoted(path)}")


class _Unhealthy(click.ClickException):
    """The sidecar is unhealthy, or does not answer. Exit code 1, the only one that Docker allows."""

    exit_code = ExitCode.FAILED

    def show(self, file: Any = None) -> None:
        click.echo(f"unhealthy: {self.format_message()}", err=True)

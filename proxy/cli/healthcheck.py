"""`cloudrun-sidecar healthcheck`: makes one request to the admin port and prints one line; exit code 0 or 1."""

from __future__ import annotations

import http.client
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from proxy.cli import probe
from proxy.cli.failures import CommandFailed
from proxy.cli.output import print_optional
from proxy.cli.parsing import Command
from proxy.cli.probe import admin_address, admin_option, ask, config_option, within
from proxy.exit_codes import ExitCode
from proxy.quoting import plain, quoted
from proxy.settings.layers import SettingsInvalid

__all__ = ["healthcheck"]

_PATHS: Final = ("/readyz", "/livez", "/startupz", "/readyz?routes")
_PATH: Final = re.compile(r"[!-~]+")


class _HealthCommand(Command):
    """A command without the exit code 2, which Docker reserves: that it cannot ask is unhealthy as well."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as exc:
            exc.exit_code = ExitCode.FAILED  # type: ignore[misc]  # of this error alone
            raise


@click.command(cls=_HealthCommand)
@admin_option
@config_option
@click.option(
    "--path",
    default="/readyz",
    show_default=True,
    shell_complete=lambda ctx, parameter, incomplete: [path for path in _PATHS if path.startswith(incomplete)],
    help="What to ask: /readyz, /livez or /startupz.",
)
def healthcheck(admin: str | None, config: Path | None, path: str) -> None:
    """Ask a running sidecar how it is: exit code 0 if it is well, else 1; never 2, which Docker reserves.

    It finds the admin port as `serve` does: --admin, CLOUDRUN_SIDECAR_ADMIN, the settings file, the default. For
    HEALTHCHECK and exec probes of images without a shell.
    """
    try:
        address = admin_address(admin, config, os.environ)
        _check_path(path)
    except (ValueError, SettingsInvalid) as exc:
        raise CommandFailed(f"unhealthy: {exc}") from None
    try:
        seconds = probe.TIMEOUT_SECONDS
        status, words = within(seconds, partial(ask, address, path, seconds))
    except TimeoutError:
        raise CommandFailed(f"unhealthy: {address}{path}: no answer within {probe.TIMEOUT_SECONDS:g} s") from None
    except OSError as exc:
        raise CommandFailed(f"unhealthy: {address}{path}: {exc.strerror or exc}") from None
    except http.client.HTTPException:
        raise CommandFailed(f"unhealthy: {address}{path}: what answers there does not speak HTTP") from None
    if status != 200:
        raise CommandFailed(f"unhealthy: {address}{path}: {status} {words}")
    print_optional(f"{address}{path}: {words}")


def _check_path(path: str) -> None:
    """Raise ValueError unless the path can be requested and shown."""
    if path in _PATHS:
        return
    if not path.startswith("/") or not _PATH.fullmatch(path) or plain(path) is None:
        raise ValueError(f"--path must be the path of a URL, as in /readyz, not {quoted(path)}")

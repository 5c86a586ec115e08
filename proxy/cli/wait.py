"""`cloudrun-sidecar wait`: returns when a sidecar is ready; exit code 0, 1 if not in time, 2 if it cannot be asked."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import click

from proxy.cli.failures import CommandFailed, Unusable
from proxy.cli.output import print_optional
from proxy.cli.parsing import Command
from proxy.cli.probe import TIMEOUT_SECONDS, admin_address, admin_option, ask, config_option, connect, within
from proxy.cli.seconds import Seconds
from proxy.network.address import Address, parse_address
from proxy.settings.layers import SettingsInvalid

__all__ = ["wait"]

_PAUSE_SECONDS: Final = 0.1
"""Between two questions."""
_LEAST_SECONDS: Final = 1.0
"""For a question; less would not tell a sidecar that is slow from one that is not ready."""


@click.command(cls=Command)
@admin_option
@config_option
@click.option(
    "--listener",
    metavar="ADDR",
    help="Wait until this address takes connections instead, for a sidecar without an admin port.",
)
@click.option(
    "--timeout",
    type=Seconds(0, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait at most.",
)
def wait(admin: str | None, config: Path | None, listener: str | None, timeout: float) -> None:
    """Wait until a sidecar is ready, to start after it what needs it: exit code 0, or 1 after the timeout.

    It asks /readyz of the admin port, which it finds as `serve` does: --admin, CLOUDRUN_SIDECAR_ADMIN, the settings
    file, the default.
    """
    deadline = time.monotonic() + timeout
    try:
        address = parse_address(listener) if listener else admin_address(admin, config, os.environ)
    except (ValueError, SettingsInvalid) as exc:
        raise Unusable(str(exc)) from None
    question = partial(_connect, address) if listener else partial(_readiness, address, deadline)
    try:
        state = within(timeout + _LEAST_SECONDS, partial(_last_state, question, deadline))
    except OSError as exc:
        state = f"{address}: {exc.strerror or exc}"
    if state is not None:
        raise CommandFailed(f"not ready: {state}, after {timeout:g} s")
    print_optional(f"{address}: ready")


def _last_state(question: Callable[[], str | None], deadline: float) -> str | None:
    """Ask until the sidecar is ready, and return None; or until the deadline, and return what it is instead."""
    while (state := question()) is not None and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(_PAUSE_SECONDS, left))
    return state


def _readiness(address: Address, deadline: float) -> str | None:
    """Return None if the sidecar is ready, else what it is instead."""
    seconds = min(TIMEOUT_SECONDS, max(_LEAST_SECONDS, deadline - time.monotonic()))
    try:
        status, words = ask(address, "/readyz", seconds)
    except OSError as exc:
        return f"{address}: {exc.strerror or exc}"
    except http.client.HTTPException:
        return f"{address}: what answers there does not speak HTTP"
    return None if status == 200 else f"{address}: {words}"


def _connect(address: Address) -> str | None:
    """Return None if a connection can be made, else why not."""
    try:
        connect(address, _LEAST_SECONDS).close()
    except OSError as exc:
        return f"{address}: {exc.strerror or exc}"
    return None

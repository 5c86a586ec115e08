"""`cloudrun-sidecar healthcheck`: makes one request to the admin port and prints one line; exit code 0 or 1."""

from __future__ import annotations

import http.client
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from proxy.exit_codes import ExitCode
from proxy.network.address import Address, parse_address_or_off
from proxy.quoting import one_line, plain, quoted
from proxy.settings.layers import SettingsInvalid, environment_name, read_file

__all__ = ["DEFAULT_ADMIN", "healthcheck"]

DEFAULT_ADMIN: Final = "127.0.0.1:9091"
"""Default of the setting `admin`; a test compares it with the model, which is not imported here."""
TIMEOUT_SECONDS: Final = 3.0
_SHOWN_OCTETS: Final = 200
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
        address = _admin(admin, config, os.environ)
        _check_path(path)
    except (ValueError, SettingsInvalid) as exc:
        raise _Unhealthy(str(exc)) from None
    try:
        status, words = _ask(address, path)
    except TimeoutError:
        raise _Unhealthy(f"{address}{path}: no answer within {TIMEOUT_SECONDS:g} s") from None
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


def _admin(flag: str | None, config: Path | None, environment: Mapping[str, str]) -> Address:
    """Return the admin address, found as `serve` finds it; ValueError or SettingsInvalid if there is none."""
    given = flag or environment.get(environment_name("admin"))
    if not given:
        file = read_file(config, environment)
        if file.problems:
            raise SettingsInvalid(file.problems)
        given = str(file.document.get("admin", DEFAULT_ADMIN))
    address = parse_address_or_off(given)
    if address is None:
        raise ValueError("the admin port is off; there is nobody to ask")
    return address


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(self._path)


def _ask(address: Address, path: str) -> tuple[int, str]:
    """Make a GET request; return the status and the first line of the body."""
    connection: http.client.HTTPConnection
    if address.path:
        connection = _UnixConnection(address.path)
    else:
        connection = http.client.HTTPConnection(address.connectable_host, address.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        first, _, _ = response.read(_SHOWN_OCTETS).partition(b"\n")
        return response.status, one_line(first.decode("ascii", "replace"), _SHOWN_OCTETS)
    finally:
        connection.close()

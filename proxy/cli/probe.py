"""Finds the admin port of a running sidecar, and asks it: what `healthcheck` and `wait` share."""

from __future__ import annotations

import errno
import http.client
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import click

from proxy.exit_codes import no_thread
from proxy.network.address import Address, parse_address_or_off
from proxy.quoting import one_line
from proxy.routes.locality import is_loopback
from proxy.settings.layers import SettingsInvalid, environment_name, read_file, variable_value

__all__ = [
    "DEFAULT_ADMIN",
    "TIMEOUT_SECONDS",
    "admin_address",
    "admin_option",
    "ask",
    "config_option",
    "connect",
    "within",
]

T = TypeVar("T")

DEFAULT_ADMIN: Final = "127.0.0.1:9091"
"""Default of the setting `admin`; a test compares it with the model, which is not imported here."""
TIMEOUT_SECONDS: Final = 3.0
"""Time for a request: from the look-up of the name to the last octet of its answer that is read."""
_SHOWN_OCTETS: Final = 200

admin_option: Final = click.option(
    "--admin", metavar="ADDR", help=f"Where the sidecar's admin port is. [default: as set, {DEFAULT_ADMIN}]"
)
"""The option with the flag of `admin_address`."""
config_option: Final = click.option(
    "--config",
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="Settings file that `serve` was given.",
)
"""The option with its settings file."""


def admin_address(flag: str | None, config: Path | None, environment: Mapping[str, str]) -> Address:
    """Return the admin address, found as `serve` finds it; ValueError or SettingsInvalid if there is none."""
    given = flag or variable_value(environment, environment_name("admin"))
    if not given:
        try:
            file = within(TIMEOUT_SECONDS, partial(read_file, config, environment))  # a pipe, or a mount that hangs
        except OSError as exc:
            why = exc.strerror or f"it takes more than {TIMEOUT_SECONDS:g} s"
            raise ValueError(f"the settings file was not read: {why}") from None
        if file.problems:
            raise SettingsInvalid(file.problems)
        given = str(file.document.get("admin", DEFAULT_ADMIN))
    address = parse_address_or_off(given)
    if address is None:
        raise ValueError("the admin port is off, so it cannot be asked")
    return address


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises; TimeoutError after so many seconds.

    It runs on a thread, which is left behind then: the look-up of a name cannot be interrupted, and the timeout of a
    socket holds for each read by itself.
    """
    returned: list[T] = []
    raised: list[Exception] = []

    def work() -> None:
        try:
            returned.append(call())
        except Exception as exc:  # noqa: BLE001 - the caller gets it
            raised.append(exc)

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, no_thread(exc) or str(exc)) from None
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not returned:
        raise TimeoutError("no answer")
    return returned[0]


def connect(address: Address, seconds: float) -> socket.socket:
    """Return a socket that is connected to an address; raises OSError.

    `seconds` hold for each address of a name, and then for each read; the look-up of the name may take any time.
    """
    if not address.path:
        try:
            return socket.create_connection((address.connectable_host, address.port), seconds)
        except UnicodeError:  # a label that is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(seconds)
        connected.connect(address.path)
    except OSError:
        connected.close()
        raise
    return connected


def ask(address: Address, path: str, seconds: float) -> tuple[int, str]:
    """Make a GET request; return the status and the first line of the body. Raises OSError and HTTPException.

    `seconds` are as for `connect`.
    """
    asking = connect(address, seconds)
    connection = http.client.HTTPConnection(address.connectable_host, address.port)
    connection.sock = asking
    headers = {"Connection": "close"}
    try:
        if address.path or is_loopback(asking.getpeername()[0]):
            # By a name of this machine a web page could call it, too, and the admin port refuses that.
            headers["Host"] = "localhost"
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        first, _, _ = response.read(_SHOWN_OCTETS).partition(b"\n")
        return response.status, one_line(first.decode("ascii", "replace"), _SHOWN_OCTETS)
    finally:
        connection.close()

"""Finds the admin port of a running sidecar, and asks it: what `healthcheck` and `wait` share."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from proxy.network.address import Address, parse_address_or_off
from proxy.quoting import one_line
from proxy.routes.locality import is_loopback
from proxy.settings.layers import SettingsInvalid, environment_name, read_file

__all__ = ["DEFAULT_ADMIN", "TIMEOUT_SECONDS", "admin_address", "ask"]

DEFAULT_ADMIN: Final = "127.0.0.1:9091"
"""Default of the setting `admin`; a test compares it with the model, which is not imported here."""
TIMEOUT_SECONDS: Final = 3.0
"""Time for each step of a request: connecting, and each read."""
_SHOWN_OCTETS: Final = 200


def admin_address(flag: str | None, config: Path | None, environment: Mapping[str, str]) -> Address:
    """Return the admin address, found as `serve` finds it; ValueError or SettingsInvalid if there is none."""
    given = flag or environment.get(environment_name("admin"))
    if not given:
        file = read_file(config, environment)
        if file.problems:
            raise SettingsInvalid(file.problems)
        given = str(file.document.get("admin", DEFAULT_ADMIN))
    address = parse_address_or_off(given)
    if address is None:
        raise ValueError("the admin port is off, so it cannot be asked")
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


def ask(address: Address, path: str) -> tuple[int, str]:
    """Make a GET request; return the status and the first line of the body. Raises OSError and HTTPException."""
    connection: http.client.HTTPConnection
    if address.path:
        connection = _UnixConnection(address.path)
    else:
        connection = http.client.HTTPConnection(address.connectable_host, address.port, timeout=TIMEOUT_SECONDS)
    headers = {"Connection": "close"}
    try:
        connection.connect()
        if not address.path and is_loopback(connection.sock.getpeername()[0]):
            # By a name of this machine a web page could call it, too, and the admin port refuses that.
            headers["Host"] = "localhost"
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        first, _, _ = response.read(_SHOWN_OCTETS).partition(b"\n")
        return response.status, one_line(first.decode("ascii", "replace"), _SHOWN_OCTETS)
    finally:
        connection.close()

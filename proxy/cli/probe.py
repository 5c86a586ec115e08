"""Finds the admin port of a running sidecar, and asks it: what `healthcheck` and `wait` share."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from proxy.network.address import Address, parse_address_or_off
from proxy.quoting import one_line
from proxy.routes.locality import is_loopback
from proxy.settings.layers import SettingsInvalid, environment_name, read_file

__all__ = ["DEFAULT_ADMIN", "TIMEOUT_SECONDS", "admin_address", "ask", "connect"]

DEFAULT_ADMIN: Final = "127.0.0.1:9091"
"""Default of the setting `admin`; a test compares it with the model, which is not imported here."""
TIMEOUT_SECONDS: Final = 3.0
"""Time for a request: from connecting to the last octet of its answer that is read."""
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


class _DeadlineSocket(socket.socket):
    """A socket that sends and receives until `deadline` (`time.monotonic`); a timeout holds for each read by itself."""

    deadline: float

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all octets; TimeoutError at the deadline."""
        self._set_rest_as_timeout()
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive octets into `buffer`, and return how many; TimeoutError at the deadline."""
        self._set_rest_as_timeout()
        return super().recv_into(buffer, nbytes, flags)

    def _set_rest_as_timeout(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)


def connect(address: Address, seconds: float) -> socket.socket:
    """Return a socket that is connected to an address; raises OSError. `seconds` hold for each address of a name."""
    if not address.path:
        return socket.create_connection((address.connectable_host, address.port), seconds)
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

    TimeoutError after `seconds`, however slowly the answer comes.
    """
    deadline = time.monotonic() + seconds
    connected = connect(address, seconds)
    asking = _DeadlineSocket(connected.family, connected.type, connected.proto, connected.detach())
    asking.deadline = deadline
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

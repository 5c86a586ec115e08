"""Ports and addresses for programs that cannot listen on port 0 and say which one they got."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

from tests.support.namespaces import skip_unless_permitted

__all__ = ["free_port", "spare_addresses"]

_ADDRESSES_TRIED = 20


def free_port() -> int:
    """Return a port of 127.0.0.1, reserved for a minute for a program that sets SO_REUSEADDR, as servers do.

    A connection in TIME-WAIT holds the port: the kernel gives it to no one who asks for any port, or connects.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listening.accept()
            accepted.close()  # the side that closes first has TIME-WAIT
    return port


def spare_addresses(port: int) -> Iterator[str]:
    """Yield loopback addresses of which hardly another program uses this port.

    The test is skipped where this user may not open the port.
    """
    skip_unless_permitted(port)
    for _ in range(_ADDRESSES_TRIED):
        yield f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"

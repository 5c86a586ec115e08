"""What takes root: namespaces of Linux for the programs of tests, and ports below 1024."""

from __future__ import annotations

import os
import socket
import unittest
from typing import Final

__all__ = ["IS_ROOT", "skip_unless_permitted", "unshared"]

IS_ROOT: Final = os.geteuid() == 0


def unshared(*namespaces: str) -> list[str]:
    """Return words before a command that run it in these namespaces, options of unshare, as root of them.

    A user who is not root makes a namespace of users, too, if the system permits it.
    """
    return ["unshare", *([] if IS_ROOT else ["--user", "--map-root-user"]), *namespaces]


def skip_unless_permitted(port: int) -> None:
    """Skip the test that runs where this user may not open such a port: Linux keeps those below 1024 for root."""
    with socket.socket() as bound:
        try:
            bound.bind(("127.0.0.1", port))
        except PermissionError:
            raise unittest.SkipTest(f"only root can open port {port} here") from None
        except OSError:  # it is in use, at this address
            pass

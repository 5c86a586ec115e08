"""The log line that says where the sidecar listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import structlog

from proxy import __version__
from proxy.network.address import Address
from proxy.routes import Route

__all__ = ["log_listening"]

_log: Final = structlog.get_logger("sidecar")

_MOST_SHOWN_ROUTES: Final = 100
"""Log collectors cut lines of some 100 KiB; /routes of the admin port has all routes."""


def log_listening(
    listen: Sequence[Any],
    tls: Sequence[Any],
    *,
    admin: str,
    engine: str,
    routes: Sequence[Route],
    open_hosts: Sequence[str],
    worker: int | None,
) -> None:
    """Write it. `listen` and `tls` are as `getsockname` returns them, `worker` the process if there are several."""
    _log.info(
        "listening",
        version=__version__,
        listen=[str(Address.of_socket(name)) for name in listen],
        **({"tls_listen": [str(Address.of_socket(name)) for name in tls]} if tls else {}),
        admin=admin,
        engine=engine,
        routes={route.name: f"{route.origin}{route.base_path}" for route in routes[:_MOST_SHOWN_ROUTES]},
        **({"open_hosts": hosts} if (hosts := open_hosts[:_MOST_SHOWN_ROUTES]) else {}),
        **({"more_routes": more} if (more := len(routes) - _MOST_SHOWN_ROUTES) > 0 else {}),
        **({"worker": worker} if worker is not None else {}),
    )

"""Listening sockets that another process has opened and passed to this one.

The service manager passes them at the start of this process (`systemd.socket(5)`): a socket of the name `admin` is for
the admin port, every other one for Restate. They replace the addresses in the settings. They stay open there when this
process ends, so clients that connect meanwhile wait for the next process instead of being refused.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxy.downstream.binding import ListenFailed
from proxy.network.address import Address
from proxy.network.service_manager import inherited_sockets

__all__ = ["ADMIN_NAME", "InheritedSockets"]

ADMIN_NAME = "admin"
"""Name of the socket of the admin port (`FileDescriptorName=`)."""


@dataclass(frozen=True, slots=True)
class InheritedSockets:
    """Listening sockets, owned by this process."""

    listeners: tuple[socket.socket, ...] = ()
    """Where Restate connects; empty: the addresses in the settings are used."""
    admin: socket.socket | None = None
    """The admin port; None: the address in the settings is used."""

    @classmethod
    def from_service_manager(cls, environment: Mapping[str, str], *, unsafe_listen: bool) -> InheritedSockets:
        """Return the sockets that the service manager has passed. Raises ListenFailed for one that cannot be used."""
        try:
            return cls.sorted_by_name(inherited_sockets(environment), unsafe_listen=unsafe_listen)
        except OSError as exc:
            raise ListenFailed("a descriptor of LISTEN_FDS", exc, transient=False) from exc

    @classmethod
    def sorted_by_name(cls, named: Iterable[tuple[str, socket.socket]], *, unsafe_listen: bool) -> InheritedSockets:
        """Return the sockets by their use. Raises ListenFailed if one cannot be used; all are closed then."""
        named = list(named)
        try:
            for name, passed in named:
                _check(name, passed, unsafe_listen)
            admin = [passed for name, passed in named if name == ADMIN_NAME]
            if len(admin) > 1:
                raise _unusable(
                    admin[1], f"there are {len(admin)} sockets of the name {ADMIN_NAME}, and one is possible"
                )
        except BaseException:
            for _, passed in named:
                passed.close()
            raise
        return cls(tuple(passed for name, passed in named if name != ADMIN_NAME), admin[0] if admin else None)


def _check(name: str, passed: socket.socket, unsafe_listen: bool) -> None:
    stream = passed.type == socket.SOCK_STREAM and passed.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if not (stream and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        raise _unusable(passed, "it is not a listening stream socket; use ListenStream= with Accept=no")
    address = Address.of_socket(passed.getsockname())
    if passed.family == socket.AF_UNIX and not address.path.startswith("/"):
        raise _unusable(
            passed, "a Unix socket needs the absolute path of a file, whose permissions say who may connect"
        )
    if name != ADMIN_NAME and not (address.is_local or unsafe_listen):
        raise _unusable(
            passed,
            "other machines can reach it, and every client that reaches it can call the services with the sidecar's "
            "identity; use a loopback address or a Unix socket, or accept that with unsafe_listen (--unsafe-listen)",
        )


def _unusable(passed: socket.socket, reason: str) -> ListenFailed:
    known = passed.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    address = str(Address.of_socket(passed.getsockname())) if known else f"descriptor {passed.fileno()}"
    return ListenFailed(f"{address} (passed to this process)", OSError(reason), transient=False)

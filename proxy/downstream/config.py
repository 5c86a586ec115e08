"""Hypercorn's configuration with our defaults, and the listening sockets."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Final

from hypercorn.config import Config, Sockets

from proxy.downstream.binding import ListenFailed, SocketFile, UnixAccess, bind_tcp, bind_unix
from proxy.network.address import parse_address
from proxy.restate import KEEP_ALIVE_SECONDS
from proxy.routes.locality import address_of

if TYPE_CHECKING:
    from proxy.downstream.takeover import Takeover

__all__ = ["ListenFailed", "ListenerConfig", "Sockets"]

# Detects within 60 + 4 × 15 s a client that has vanished (a lost node, an expired NAT entry), but for one to which data
# was under way: the kernel retransmits that for a quarter of an hour (tcp_retries2), and sends no probes meanwhile.
# TCP_USER_TIMEOUT would end those in time, and slow readers as well: Linux counts from when the window closed first,
# even if they read on. Accepted sockets inherit these options from the listening one.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


_OWNER_AND_GROUP: Final = UnixAccess()


class ListenerConfig(Config):
    """Hypercorn's configuration with some defaults replaced. It is pickled for worker processes."""

    def __init__(
        self,
        addresses: tuple[str, ...],
        workers: int,
        payload: str = "",
        *,
        max_head_octets: int = 64 << 10,
        unix_access: UnixAccess = _OWNER_AND_GROUP,
        tls_addresses: tuple[str, ...] = (),
    ) -> None:
        self.bind = list(addresses)
        self.workers = workers
        self.payload = payload
        """The settings of a worker process, in JSON."""
        self.sidecar_octets = os.urandom(8)
        """Random octets of the sidecar's name; the same in all of its workers."""
        self.backlog = 1_024
        self.errorlog = logging.getLogger("hypercorn")
        self.include_date_header = False
        self.include_server_header = False
        self.keep_alive_timeout = KEEP_ALIVE_SECONDS
        self.keep_alive_max_requests = 1 << 62
        self.h11_max_incomplete_size = max_head_octets
        # Unbounded: a full queue would block Hypercorn's report of a disconnect for ever (see `http1`).
        self.max_app_queue_size = 0
        # `Listener.drain` ends before Hypercorn closes, and aborts within this time what is left.
        self.graceful_timeout = 1.0
        self.shared = False
        """True if another process has the listening sockets, too: what this one does not accept waits for the other."""
        self.tls_addresses = tls_addresses
        """Addresses for TLS."""
        self.tls_descriptors: frozenset[int] = frozenset()
        """The descriptors of the sockets that listen there."""
        self._unix_access = unix_access
        self._files: list[SocketFile] = []

    def create_sockets(self, inherited: Sequence[socket.socket] = (), takeover: Takeover | None = None) -> Sockets:
        """Bind every address and listen; inherited sockets replace those without TLS.

        A socket that was taken over is used instead of a new one. All are offered to the sidecar after this one. Raises
        ListenFailed for the first address that cannot be bound.
        """
        bound: list[socket.socket] = []
        if inherited:
            self.shared = True
            for passed in inherited:
                if passed.family != socket.AF_UNIX:
                    _keep_alive(passed)
            bound += inherited
        plain = () if inherited else self.bind
        named = [("listen", address) for address in plain] + [("tls_listen", address) for address in self.tls_addresses]
        # There, `[::]` must leave IPv4 to the address that names it.
        ipv4_ports = {one.port for _, text in named if _is_ipv4((one := parse_address(text)).host)} - {0}
        for setting, address in named:
            try:
                bound.append(self._listening(setting, address, ipv4_ports, takeover))
            except OSError as exc:
                self.release(Sockets([], bound, []), remove_files=takeover is None or takeover.owns_files)
                raise ListenFailed(address, exc) from exc
        count = len(bound) - len(self.tls_addresses)
        self.tls_descriptors = frozenset(one.fileno() for one in bound[count:])
        return Sockets([], bound, [])

    def release(self, sockets: Sockets, *, remove_files: bool = True) -> None:
        """Close the sockets, and remove the files of Unix sockets unless other files have replaced them."""
        for bound in sockets.insecure_sockets:
            bound.close()
        files, self._files = self._files, []
        if not remove_files:
            return
        for file in files:
            file.remove()

    def _listening(
        self, setting: str, address: str, ipv4_ports: Container[int], takeover: Takeover | None
    ) -> socket.socket:
        host, port, path = parse_address(address)
        bound = takeover.socket_for(setting, address) if takeover is not None else None
        # Not by Hypercorn: with several workers it would set SO_REUSEPORT, and share the port with any program that
        # does, such as a second sidecar started by mistake.
        if bound is None:
            bound = bind_unix(path, self._unix_access) if path else bind_tcp(host, port, ipv6_only=port in ipv4_ports)
        elif path:
            self._unix_access.apply(path)
        try:
            if path:
                self._files.append(SocketFile(path))
            else:
                _keep_alive(bound)
            # From here on the kernel queues clients, so they can connect as soon as the log says that we listen.
            bound.listen(self.backlog)
        except OSError:
            bound.close()
            raise
        if takeover is not None:
            takeover.offer(setting, address, bound)
        return bound


def _is_ipv4(host: str) -> bool:
    literal = address_of(host)
    return literal is not None and literal.version == 4


def _keep_alive(bound: socket.socket) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            bound.setsockopt(socket.IPPROTO_TCP, option, value)

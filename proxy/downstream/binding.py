"""Binds TCP sockets to listen on, and explains why one cannot be bound. Used for the admin port, too."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

__all__ = ["ListenFailed", "bind_tcp"]

# A restart does not help: a setting, a permission or a folder must be changed first.
_SETTINGS_ERRORS: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EAFNOSUPPORT,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EROFS,
    }
)
_LOOKUP_SETTINGS_ERRORS: Final = frozenset(
    {socket.EAI_NONAME, socket.EAI_FAMILY, socket.EAI_SERVICE, getattr(socket, "EAI_ADDRFAMILY", socket.EAI_FAMILY)}
)

_OTHER_FAMILY_MAY_WORK: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors of binding to an IPv6 address on a machine without IPv6."""


class ListenFailed(Exception):
    """An address cannot be listened on; `str()` names it and says why."""

    def __init__(self, address: str, exc: OSError, *, transient: bool = True) -> None:
        super().__init__(f"cannot listen on {address}: {_reason(exc)}")
        settings_errors = _LOOKUP_SETTINGS_ERRORS if isinstance(exc, socket.gaierror) else _SETTINGS_ERRORS
        self.transient = transient and exc.errno not in settings_errors
        """True if a later attempt may succeed, as with a port that another program uses."""


def bind_tcp(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a TCP socket that is bound to this address and does not listen yet. Raises OSError.

    If a name has several addresses, the first that can be bound is used, IPv4 first: so `localhost` works on machines
    without IPv6 and on machines without IPv4. Blocks while the name is looked up.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError:  # a label that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    failure: OSError | None = None
    for family, kind, protocol, _, address in sorted(found, key=lambda entry: entry[0] != socket.AF_INET):
        try:
            bound = socket.socket(family, kind, protocol)
        except OSError as exc:
            failure = failure or exc
            continue
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if reuse_port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.setblocking(False)
            bound.bind(address)
        except OSError as exc:
            bound.close()
            failure = failure or exc
            if exc.errno not in _OTHER_FAMILY_MAY_WORK:
                break
        else:
            return bound
    raise failure or socket.gaierror(socket.EAI_NONAME, "it has no address")


def _reason(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return f"the name does not resolve ({exc.strerror})"
    # asyncio puts a sentence of its own into `strerror`; EEXIST is raised by `config`, with the reason in `strerror`.
    reason = os.strerror(exc.errno) if exc.errno and exc.errno != errno.EEXIST else str(exc.strerror or exc)
    if exc.errno == errno.EACCES:
        return f"{reason}; a port below 1024 needs CAP_NET_BIND_SERVICE, a Unix socket a folder that can be written to"
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"{reason}; no interface of this machine has this address now"
    return reason

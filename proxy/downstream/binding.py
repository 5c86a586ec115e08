"""Binds sockets to listen on, and explains why one cannot be bound. Used for the admin port, too."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["ListenFailed", "SocketFile", "UnixAccess", "bind_tcp", "bind_unix"]

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


class OwnerUnusable(OSError):
    """A Unix socket cannot be given to the owner in the settings; `str()` says why."""


@dataclass(frozen=True, slots=True)
class UnixAccess:
    """Which local users can connect to a Unix socket: that takes write permission for its file."""

    mode: int = 0o660
    """Permissions of the file."""
    user: str | None = None
    """Name or number of its owner; None for the user of this process."""
    group: str | None = None
    """Name or number of its group; None for the group of this process."""

    @classmethod
    def parse(cls, mode: str, user: str | None, group: str | None) -> UnixAccess:
        """Return what the settings `socket_mode`, `socket_user` and `socket_group` say."""
        return cls(int(mode, 8), user, group)

    def apply(self, path: str) -> None:
        """Set owner and permissions of the file. Raises OSError."""
        if self.user is not None or self.group is not None:
            user, group = _number("user", self.user, _user_number), _number("group", self.group, _group_number)
            try:
                os.chown(path, user, group)
            except PermissionError:
                raise OwnerUnusable(
                    "the socket cannot be given to the socket_user or socket_group in the settings: only root can name "
                    "another user, and any other user only a group that it is in"
                ) from None
        os.chmod(path, self.mode)


class ListenFailed(Exception):
    """An address cannot be listened on; `str()` names it and says why."""

    def __init__(self, address: str, exc: OSError, *, transient: bool = True) -> None:
        super().__init__(f"cannot listen on {address}: {_reason(exc)}")
        settings_errors = _LOOKUP_SETTINGS_ERRORS if isinstance(exc, socket.gaierror) else _SETTINGS_ERRORS
        self.transient = transient and exc.errno not in settings_errors and not isinstance(exc, OwnerUnusable)
        """True if a later attempt may succeed, as with a port that another program uses."""


class SocketFile:
    """The file of a Unix socket that listens. Raises OSError if there is none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove it, but no other file that has its place by now: another process may listen there."""
        with contextlib.suppress(OSError):
            if _identity(self._path) == self._identity:
                os.remove(self._path)


def bind_tcp(host: str, port: int, *, ipv6_only: bool = False) -> socket.socket:
    """Return a TCP socket that is bound to this address and does not listen yet. Raises OSError.

    `[::]` takes IPv4, too, as the system is set up, unless `ipv6_only`. If a name has several addresses, the first that
    can be bound is used, IPv4 first: so `localhost` works on machines without IPv6 and on machines without IPv4. Blocks
    while the name is looked up.
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
            if ipv6_only and family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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


def bind_unix(path: str, access: UnixAccess) -> socket.socket:
    """Return a Unix socket that is bound to this path, and does not listen before `access` is in force.

    A socket that another process has left there is removed, but not one that listens. Raises OSError.
    """
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file of that name exists, and is not a socket")
        _check_unused(path)
        os.remove(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.setblocking(False)
        bound.bind(path)
        try:
            access.apply(path)
        except OSError:
            os.remove(path)
            raise
    except OSError:
        bound.close()
        raise
    return bound


def _identity(path: str) -> tuple[int, int, int]:
    """Return what tells a file from the next one: ext4 gives that the number of one that was removed."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _check_unused(path: str) -> None:
    """Raise OSError if another process listens there."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return
    except BlockingIOError:
        pass  # its queue is full
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _number(kind: str, name: str | None, look_up: Callable[[str], int]) -> int:
    """Return the number of a user or a group, -1 for none. Raises OwnerUnusable."""
    if name is None:
        return -1
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return look_up(name)
    except KeyError:
        raise OwnerUnusable(f"this machine has no {kind} {name} (socket_{kind})") from None


def _user_number(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group_number(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _reason(exc: OSError) -> str:
    if isinstance(exc, OwnerUnusable):
        return str(exc)
    if isinstance(exc, socket.gaierror):
        return f"the name does not resolve ({exc.strerror})"
    # asyncio puts a sentence of its own into `strerror`; for EEXIST the reason stands there.
    reason = os.strerror(exc.errno) if exc.errno and exc.errno != errno.EEXIST else str(exc.strerror or exc)
    if exc.errno == errno.EACCES:
        return f"{reason}; a port below 1024 needs CAP_NET_BIND_SERVICE, a Unix socket a folder that can be written to"
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"{reason}; no interface of this machine has this address now"
    if exc.errno == errno.EADDRINUSE:
        return f"{reason}; end the program that listens there, or name another address"
    return reason

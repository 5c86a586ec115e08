"""A sidecar that starts takes over the listening sockets of the one that runs, so that no client is refused.

Both have the same Unix socket in their settings (`takeover_socket`). The one that runs listens there::

    new        connects
    running    a line of JSON that names its listening sockets, and the sockets (SCM_RIGHTS, unix(7))
    new        starts with the sockets whose addresses it has, too; "ready" once it serves
    running    accepts no more, "taken", and drains

If the connection ends before "ready", the new one has failed, and the running one serves on as if nothing had happened.
The Unix socket itself is one of the sockets: its path leads to the running sidecar at any time.

Only the user of the running sidecar can take over: others cannot open the file (mode 0600), but root, which gets no
answer (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from proxy.downstream.binding import ListenFailed, SocketFile, UnixAccess, bind_unix
from proxy.network.address import Address, parse_address

__all__ = ["Takeover"]

_log: Final = structlog.get_logger("sidecar")

_READY: Final = b"ready\n"
_TAKEN: Final = b"taken\n"
_LATE: Final = b"late\n"

_ANSWER_SECONDS: Final = 10.0
"""How long the running sidecar may take to answer."""
_START_SECONDS: Final = 60.0
"""How long a new sidecar may take to be ready; after that another one may take over."""
_MOST_OCTETS: Final = 1 << 16
_MOST_SOCKETS: Final = 253
"""SCM_MAX_FD of Linux."""
_CREDENTIALS: Final = struct.Struct("3i")
"""`struct ucred`: process, user, group."""
_OWNER: Final = UnixAccess(mode=0o600)
_CONTROL: Final = "takeover_socket"
_UNKNOWN: Final = "it is another program or version; end it, then start this one"

Watch = Callable[[socket.socket, Callable[[], None]], object]
Unwatch = Callable[[socket.socket], object]


class Takeover:
    """The listening sockets between the sidecar before this one, if there is one, and the one after it."""

    def __init__(self, path: str, control: socket.socket, before: socket.socket | None = None, pid: int = 0) -> None:
        self.handed_on = False
        """True once another process has taken over."""
        self._path = path
        self._file = SocketFile(path)
        self._control = control
        self._before = before
        """The connection to the sidecar before this one, until that drains."""
        self._pid = pid
        """Its process."""
        self._received: list[tuple[str, str, socket.socket]] = []
        """Its listening sockets that are not used yet, each with the setting and the address in it."""
        self._offered: list[tuple[str, str, socket.socket]] = [(_CONTROL, path, control)]
        self._watch: Watch | None = None
        self._unwatch: Unwatch | None = None
        self._on_taken: Callable[[], object] = lambda: None
        self._next: socket.socket | None = None
        """The connection from the sidecar after this one, until it is ready."""
        self._next_pid = 0
        self._next_until = 0.0

    @classmethod
    def open(cls, address: str) -> Takeover:
        """Connect to the sidecar that listens at this address and get its sockets; if there is none, listen there.

        Blocks for a few seconds at most. Raises ListenFailed.
        """
        path = parse_address(address).path
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return cls(path, _listening(address, path))
        except OSError as exc:
            connection.close()
            raise _not_connected(address, path, exc) from exc
        try:
            return cls._received_from(connection, path)
        except (OSError, ValueError) as exc:
            connection.close()
            raise _failed(address, f"the sidecar that runs does not hand over its sockets: {exc}") from exc

    @classmethod
    def _received_from(cls, connection: socket.socket, path: str) -> Takeover:
        """Receive what the running sidecar sends; raises OSError or ValueError, with the reason."""
        _, user = _peer(connection)
        if user != os.geteuid():
            raise ValueError(f"it runs as user {user}, and this one as user {os.geteuid()}; both must be the same")
        text = b""
        descriptors: list[int] = []
        try:
            while not text.endswith(b"\n"):
                octets, more, flags, _ = socket.recv_fds(connection, _MOST_OCTETS, _MOST_SOCKETS)
                descriptors += more
                if flags & socket.MSG_CTRUNC:
                    raise ValueError("limit of open files reached (ulimit -n)")
                if not octets:
                    raise ValueError("it has closed the connection")
                text += octets
            before, names = _named(text, len(descriptors), path)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        received = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        for one in received:
            one.set_inheritable(False)  # `recv_fds` ignores MSG_CMSG_CLOEXEC
            one.setblocking(False)
        takeover = cls(path, received[0], connection, before)
        takeover._received = [(*name, one) for name, one in zip(names[1:], received[1:], strict=True)]
        return takeover

    # ---- the sidecar before this one

    @property
    def replacing(self) -> bool:
        """True while another sidecar takes requests on these sockets, until this one is ready."""
        return self._before is not None

    @property
    def owns_files(self) -> bool:
        """True if this process removes the files of its Unix sockets at its end: no other one has these sockets."""
        return not (self.replacing or self.handed_on or self._next is not None)

    def socket_for(self, setting: str, address: str) -> socket.socket | None:
        """Return the socket of the sidecar before this one that listens at this address, once; None if it has none.

        `setting` is the name of the setting in which the address is; so port 0 is the port that the other one got.
        """
        for place, (name, configured, received) in enumerate(self._received):
            bound = Address.of_socket(received.getsockname())
            # The file of a Unix socket may have been removed: nobody could connect to it then.
            lost = bound.path and not os.path.exists(bound.path)
            if name == setting and address in (configured, str(bound)) and not lost:
                del self._received[place]
                return received
        return None

    def complete(self) -> None:
        """Have the sidecar before this one drain: this one is ready. Raises ListenFailed if that is too late.

        Blocks for a few seconds at most.
        """
        before = self._before
        if before is None:
            return
        answer = b""
        with before:
            with contextlib.suppress(OSError):  # it has died, or has closed the connection and said why
                before.sendall(_READY)
            with contextlib.suppress(OSError):  # it has died, or hangs: this one serves
                answer = before.recv(len(_TAKEN))
        self._close_received()
        if answer == _LATE:
            raise _failed(f"unix:{self._path}", f"this process was not ready within {_START_SECONDS:g} seconds")
        self._before = None
        if answer == _TAKEN:
            _log.info("listening sockets taken over", before=self._pid)
        else:
            _log.warning("listening sockets taken over, and the process before has not answered", before=self._pid)

    # ---- the sidecar after this one

    def offer(self, setting: str, address: str, listening: socket.socket) -> None:
        """Hand on this listening socket, too; `setting` and `address` as for `socket_for`."""
        self._offered.append((setting, address, listening))

    def start(self, watch: Watch, unwatch: Unwatch, on_taken: Callable[[], object]) -> None:
        """Wait for the next sidecar; call `on_taken` once it has the sockets and is ready.

        `watch(socket, call)` has `call` called whenever the socket can be read, until `unwatch(socket)`.
        """
        self._watch, self._unwatch, self._on_taken = watch, unwatch, on_taken
        watch(self._control, self._accept)

    def close(self) -> None:
        """Stop waiting for the next sidecar, and release all but the sockets that were passed to `offer`."""
        if self.owns_files:
            self._file.remove()
        self._stop()
        self._close_received()
        if self._before is not None:
            self._before.close()

    def _stop(self) -> None:
        self._drop_next(b"")
        if self._control.fileno() >= 0:
            if self._unwatch is not None:
                self._unwatch(self._control)
            self._control.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._control.accept()
        except OSError:  # it has left already; or there is no descriptor
            return
        connection.setblocking(False)
        if self._next is not None:
            self._read(self._next)  # it may have failed, and this be the next attempt
        if self.handed_on:
            connection.close()
            return
        pid, user = _peer(connection)
        busy = self._next is not None and time.monotonic() < self._next_until
        said: dict[str, object] = {
            "pid": os.getpid(),
            "sockets": [(setting, address) for setting, address, _ in self._offered],
        }
        if user != os.geteuid():
            _log.warning("takeover refused: another user asks for it", user=user, pid=pid)
            connection.close()
            return
        if busy:
            said = {"refused": f"another process is about to take over: {self._next_pid}"}
        descriptors = [] if busy else [offered.fileno() for *_, offered in self._offered]
        try:
            socket.send_fds(connection, [json.dumps(said).encode() + b"\n"], descriptors)
        except OSError as exc:
            _log.warning("takeover failed: the sockets could not be sent", reason=exc.strerror, pid=pid)
            busy = True
        if busy or self._watch is None:
            connection.close()
            return
        self._drop_next(_LATE)
        self._next, self._next_pid, self._next_until = connection, pid, time.monotonic() + _START_SECONDS
        self._watch(connection, partial(self._read, connection))

    def _read(self, connection: socket.socket) -> None:
        if connection is not self._next:  # it was dropped since the selector returned
            return
        said = b""
        try:
            said = connection.recv(len(_READY))
        except BlockingIOError:
            return
        except OSError:
            pass
        if said != _READY:
            _log.warning("takeover failed: the new process ended before it was ready; serving on", pid=self._next_pid)
            self._drop_next(b"")
            return
        self.handed_on = True
        _log.info("listening sockets handed over to another process", to=self._next_pid)
        self._on_taken()
        self._drop_next(_TAKEN)
        self._stop()

    def _drop_next(self, last_word: bytes) -> None:
        connection, self._next = self._next, None
        if connection is None:
            return
        if self._unwatch is not None:
            self._unwatch(connection)
        with connection, contextlib.suppress(OSError):
            connection.send(last_word)

    def _close_received(self) -> None:
        received, self._received = self._received, []
        for *_, one in received:
            one.close()


def _named(text: bytes, sockets: int, path: str) -> tuple[int, list[tuple[str, str]]]:
    """Return the process of the running sidecar, and of each of its sockets the setting and the address in it.

    Raises ValueError, with the reason.
    """
    try:
        said = json.loads(text)
        refused, pid = said.get("refused"), int(said.get("pid", 0))
        names = [(str(setting), str(address)) for setting, address in said.get("sockets", ())]
    except (ValueError, TypeError, AttributeError) as exc:
        raise ValueError(_UNKNOWN) from exc
    if refused:
        raise ValueError(refused)
    if not names or len(names) != sockets or names[0][0] != _CONTROL:
        raise ValueError(_UNKNOWN)
    if names[0][1] != path:
        raise ValueError(f"its takeover_socket is unix:{names[0][1]}; write it in the same way")
    return pid, names


def _not_connected(address: str, path: str, exc: OSError) -> ListenFailed:
    """Return what to say if nobody answers at this path, although its file is there."""
    if isinstance(exc, PermissionError) and os.path.exists(path):
        owner, user = os.stat(path).st_uid, os.geteuid()
        reason = f"it belongs to user {owner}, and this process runs as user {user}; both must be the same"
        return ListenFailed(f"{address} (takeover_socket)", OSError(reason), transient=False)
    return ListenFailed(f"{address} (takeover_socket)", exc)


def _listening(address: str, path: str) -> socket.socket:
    """Return a new Unix socket that listens at this path. Raises ListenFailed."""
    try:
        control = bind_unix(path, _OWNER)
        control.listen()
    except OSError as exc:
        raise ListenFailed(f"{address} (takeover_socket)", exc) from exc
    return control


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return process and user of the other end. Where the kernel does not tell, the file's mode has to do."""
    if (option := getattr(socket, "SO_PEERCRED", None)) is None:
        return 0, os.geteuid()
    pid, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return pid, user


def _failed(address: str, reason: str) -> ListenFailed:
    return ListenFailed(f"{address} (takeover_socket)", OSError(reason))

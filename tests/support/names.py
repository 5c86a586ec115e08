"""A name server of the test's own, and programs that ask no other one.

glibc asks port 53 of the addresses in /etc/resolv.conf. So the server listens there on a spare loopback address, and
the program runs in a mount namespace with other files in the places of /etc/resolv.conf, /etc/hosts and
/etc/nsswitch.conf. Both need root. (libresolv_wrapper does not reach the questions of glibc's own getaddrinfo.)
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.namespaces import unshared
from tests.support.ports import spare_addresses

__all__ = ["NameServer", "name_server", "silent_name_servers"]

_HEAD: Final = struct.Struct("!6H")
_RECORD: Final = struct.Struct("!3HIH4s")
_POINTER_TO_QUESTION: Final = 0xC00C
_A, _IN = 1, 1
_ANSWER, _NO_SUCH_NAME = 0x8580, 0x8583


class NameServer(asyncio.DatagramProtocol):
    """Answers for the names in `addresses` (IPv4), says nothing about those in `silent`, and knows no others."""

    def __init__(self, addresses: Mapping[str, list[str]], silent: set[str]) -> None:
        self.addresses = dict(addresses)
        self.silent = set(silent)
        self.questions: Counter[str] = Counter()
        """How often the IPv4 addresses of a name were asked for; what glibc repeats after some seconds counts once."""
        self.host = ""
        self._asked_by: set[tuple[str, bytes]] = set()
        self._unanswered: list[tuple[str, bytes, Any]] = []
        self._asked = asyncio.Event()
        self._transport: asyncio.DatagramTransport

    async def asked_for(self, name: str, times: int = 1) -> None:
        """Wait until a name has been asked for."""
        while self.questions[name] < times:
            self._asked.clear()
            await self._asked.wait()

    def answer_now(self, name: str, *addresses: str) -> None:
        """Answer all questions about a silent name, those of before as well."""
        self.silent.discard(name)
        self.addresses[name] = list(addresses)
        held, self._unanswered = self._unanswered, []
        for about, question, sender in held:
            if about == name:
                self._answer(about, question, sender)
            else:
                self._unanswered.append((about, question, sender))

    def under(self, folder: Path, *lines: str, hosts: str = "127.0.0.1 localhost\n") -> list[str]:
        """Return the command that executes the one after it where this is the only name server.

        `lines` go to resolv.conf, `hosts` is /etc/hosts. A question is asked once, and waited for half a minute.
        """
        files = {
            "/etc/resolv.conf": "\n".join([f"nameserver {self.host}", "options timeout:30 attempts:1", *lines, ""]),
            "/etc/hosts": hosts,
            "/etc/nsswitch.conf": "hosts: files dns\n",
        }
        script = []
        for path, text in files.items():
            file = folder / Path(path).name
            file.write_text(text)
            script.append(f"mount --bind '{file}' {path}")
        return [*unshared("--mount"), "sh", "-c", " && ".join([*script, 'exec "$@"']), "sh"]

    # What asyncio calls.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        labels, position = [], _HEAD.size
        while length := data[position]:
            labels.append(data[position + 1 : position + 1 + length].decode())
            position += 1 + length
        name = ".".join(labels).lower()
        question = data[: position + 5]
        if _kind(question) == _A and (name, question[:2]) not in self._asked_by:
            self._asked_by.add((name, question[:2]))
            self.questions[name] += 1
            self._asked.set()
        if name in self.silent:
            self._unanswered.append((name, question, addr))
        else:
            self._answer(name, question, addr)

    def _answer(self, name: str, question: bytes, addr: Any) -> None:
        known = name in self.addresses
        found = self.addresses[name] if known and _kind(question) == _A else []
        head = _HEAD.pack(
            struct.unpack("!H", question[:2])[0], _ANSWER if known else _NO_SUCH_NAME, 1, len(found), 0, 0
        )
        records = [_RECORD.pack(_POINTER_TO_QUESTION, _A, _IN, 0, 4, socket.inet_aton(address)) for address in found]
        self._transport.sendto(head + question[_HEAD.size :] + b"".join(records), addr)


def _kind(question: bytes) -> int:
    return int(struct.unpack("!H", question[-4:-2])[0])


@asynccontextmanager
async def name_server(
    addresses: Mapping[str, list[str]] | None = None, *, silent: set[str] | None = None
) -> AsyncIterator[NameServer]:
    """Run a name server for the time of a `with`."""
    server = NameServer(addresses or {}, silent or set())
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, sock=_bound())
    server.host = transport.get_extra_info("sockname")[0]
    try:
        yield server
    finally:
        transport.close()


@contextmanager
def silent_name_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have no look-up of this process end before the end of a `with`."""
    over = threading.Event()

    def look_up(*_: Any, **__: Any) -> Any:
        over.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "the test is over")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        try:
            yield
        finally:
            over.set()


def _bound() -> socket.socket:
    """Return a datagram socket at port 53 of a loopback address that no other program uses."""
    for address in spare_addresses(53):
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            bound.bind((address, 53))
        except OSError:
            bound.close()
        else:
            return bound
    raise AssertionError("no loopback address has port 53 free")

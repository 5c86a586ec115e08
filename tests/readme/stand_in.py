"""Stand-ins for programs: found on PATH, and executed in this process.

What such a program does not know to the letter, it refuses in a sentence, and ends with 1.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["Call", "Does", "Refused", "on_path", "read"]

# SIGTERM closes the connection, so that a command in the foreground ends in order.
_PROGRAM: Final = """\
#!/usr/bin/env python3
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect({socket!r})
    signal.signal(signal.SIGTERM, lambda *_: peer.shutdown(socket.SHUT_WR))
    call = dict(program={name!r}, words=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
    peer.sendall(json.dumps(call).encode() + b"\\n")
    answer = json.loads(peer.makefile().readline())
print(answer["text"], end="", file=sys.stderr if answer["status"] else sys.stdout)
sys.exit(answer["status"])
"""
_MOST_OCTETS: Final = 1 << 20


class Refused(Exception):
    """The real program would refuse the command, or fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The invocation of a program."""

    program: str
    words: Sequence[str]
    """The arguments after its name."""
    folder: Path
    environment: Mapping[str, str] = field(repr=False)
    _rest: asyncio.StreamReader = field(default_factory=asyncio.StreamReader, repr=False)

    async def told_to_end(self) -> None:
        """Return when the caller sends SIGTERM or exits."""
        await self._rest.read()


Does: TypeAlias = Callable[[Call], Awaitable[str]]
"""Executes a command and returns its output; raises Refused."""


@asynccontextmanager
async def on_path(folder: Path, programs: Mapping[str, Does]) -> AsyncIterator[str]:
    """Yield a PATH with these programs, then the system's, then those of this Python; valid inside the `with`."""
    address, place = folder / "stand-ins.sock", folder / "stand-ins"
    place.mkdir()
    for name in programs:
        file = place / name
        file.write_text(_PROGRAM.format(socket=str(address), name=name))
        file.chmod(0o755)

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = json.loads(await reader.readline())
        folder = Path(message.pop("folder"))
        call = Call(folder=folder, **message, _rest=reader)
        try:
            answer = {"status": 0, "text": await programs[call.program](call)}
        except Refused as exc:
            answer = {"status": 1, "text": f"{call.program} {shlex.join(call.words)}: {exc}\n"}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(called, sock=_open_to_all(address), limit=_MOST_OCTETS):
        yield f"{place}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{Path(sys.executable).parent}"


def _open_to_all(address: Path) -> socket.socket:
    """Return a socket at this address that every user may connect to."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(address))
    address.chmod(0o666)
    return made


def read(
    words: Sequence[str], *, flags: Collection[str] = (), valued: Collection[str] = (), then: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Return the positional arguments, and the options; a flag has the value "".

    With `then`, options end at the first word. Refused for an option that is not known, comes twice or lacks its value.
    """
    plain: list[str] = []
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            plain.append(word)
            if then:
                return [*plain, *rest], options
            continue
        if word not in {*flags, *valued}:
            raise Refused(f"there is no option {word} here")
        if word in options:
            raise Refused(f"{word} is given twice")
        options[word] = ""
        if word in valued:
            options[word] = next(rest, "")
            if not options[word]:
                raise Refused(f"{word} lacks its value")
    return plain, options

"""How long a program computes at a stretch before it looks at its sockets again, measured from outside.

What arrives meanwhile waits. The time is that of all threads of the process on the processor (they share the
interpreter), so it is the same whatever else the machine does, but for interrupts and emptied caches.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tests.load.places import compile_library

__all__ = ["Measured", "Turns"]

_SOURCE: Final = Path(__file__).with_name("turns.c")
_LAYOUT: Final = struct.Struct("=qq")


class Measured(NamedTuple):
    """Turns of an event loop: from one call of epoll to the next."""

    number: int
    longest_us: float
    """Microseconds of processor time."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What measures the programs that are started with `environment`."""

    library: Path
    folder: Path

    @classmethod
    async def create(cls, folder: Path) -> Turns:
        """Compile it in this folder, which gets a file for each program; raises Unavailable and ProgramFailed."""
        return cls(await compile_library(_SOURCE, folder), folder)

    @property
    def environment(self) -> Mapping[str, str]:
        """For the programs that are to be measured."""
        return {"LD_PRELOAD": str(self.library), "TURNS_FOLDER": str(self.folder)}

    def forget(self, pid: int) -> None:
        """Measure from now on. Raises OSError if the program has not called epoll."""
        with self._file(pid).open("r+b", buffering=0) as file:
            file.write(_LAYOUT.pack(0, 0))

    def measured(self, pid: int) -> Measured:
        """Return what the main thread of this program has done since `forget`. Raises OSError likewise."""
        number, nanoseconds = _LAYOUT.unpack(self._file(pid).read_bytes())
        return Measured(number, nanoseconds / 1000)

    def _file(self, pid: int) -> Path:
        return self.folder / str(pid)

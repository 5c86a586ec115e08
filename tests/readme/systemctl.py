"""A stand-in for `systemctl` without a running systemd: it uses the tools of systemd that work without it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from tests.readme.stand_in import Call, Refused, read
from tests.support.processes import ProgramFailed, program

__all__ = ["Systemctl"]

UNITS: Final = Path("/etc/systemd/system")


class Systemctl:
    """`daemon-reload`, and `enable --now UNIT`, which starts the unit, sees it ready, and stops it."""

    def __init__(self) -> None:
        self._loaded: dict[str, str] = {}

    async def do(self, call: Call) -> str:
        """Run one command and return what was done; raises Refused with the objections of systemd."""
        words, options = read(call.words, flags=("--now",))
        match words:
            case ["daemon-reload"] if not options:
                self._loaded = {file.stem: file.read_text() for file in UNITS.glob("*.service") if file.is_file()}
                return ""
            case ["enable", unit] if options:
                return await self._enable(unit)
        raise Refused("`daemon-reload` and `enable --now UNIT` are all that is known here")

    async def _enable(self, unit: str) -> str:
        file = UNITS / f"{unit}.service"
        if not file.exists() or self._loaded.get(unit) != file.read_text():
            raise Refused(f"{unit} is not there, or has changed since the last daemon-reload")
        if complaint := await _done("systemd-analyze", "verify", file):
            raise Refused(complaint)
        linked = await _done("systemctl", "enable", unit)
        ran = await _done("unshare", "--net", sys.executable, "-m", "tests.readme.unit", file)
        return f"{linked}\n{ran}\n"


async def _done(*argv: str | Path) -> str:
    """Return the output of a program; raises Refused if it fails."""
    found = shutil.which(argv[0], path=os.environ.get("PATH", os.defpath))
    if not found:
        raise Refused(f"{argv[0]} is not installed: `make test` installs it (Debian: systemd)")
    try:
        async with program(str(argv[0]), [found, *argv[1:]], env={"SYSTEMD_OFFLINE": "1"}) as child:
            status = await child.ended(within_seconds=60.0)
    except ProgramFailed as exc:
        raise Refused(str(exc)) from exc
    if status:
        raise Refused(child.tail())
    return "\n".join(child.lines)

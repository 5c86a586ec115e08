"""The shell of somebody who follows the README: what is typed, where, and what came of it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.shipping.steps import Wrong
from tests.support.processes import Program, ProgramFailed, program

__all__ = ["FROM_MAKE", "Shell"]

FROM_MAKE: Final = (
    "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MAKE_TERMOUT", "MAKE_TERMERR", "ARGS", "ONCE", "QUICK", "UV",
)  # fmt: skip
"""What a make that runs us says in the environment to every other make below it, `make test ARGS=…` for one."""


@dataclass
class Shell:
    """A shell in a folder; what it exports, it keeps. A make that runs us has no say in what is typed here."""

    folder: Path
    environment: dict[str, str | None]
    within_seconds: float = 240.0
    user: int | None = None
    """Who it is; None is who we are."""
    _exports: list[str] = field(default_factory=list)

    async def type(self, command: str) -> str:
        """Return what a command prints; raises Wrong when it fails."""
        try:
            async with self.running(command) as child:
                status = await child.ended(within_seconds=self.within_seconds)
                output = "\n".join(child.lines)
        except ProgramFailed as exc:
            raise Wrong(f"$ {command}\n{exc}") from exc
        if status:
            raise Wrong(f"$ {command}\nended with {status}:\n{child.tail(60)}")
        if command.startswith("export "):
            self._exports.append(command)
        return output

    def running(self, command: str, folder: Path | None = None) -> AbstractAsyncContextManager[Program]:
        """Run a command that stays, in this folder or in another one; it is told to end with the block."""
        # The last one takes the shell's place, so that it is the one to get a signal.
        last = command if "&&" in command or command.startswith("export ") else f"exec {command}"
        script = "\n".join(["set -e", *self._exports, last])
        become = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"] if self.user else []
        return program(
            command.partition(" ")[0],
            ["env", f"--chdir={folder or self.folder}", *become, "bash", "-c", script],
            env={**dict.fromkeys(FROM_MAKE), **self.environment},
            stop_seconds=60.0,
        )

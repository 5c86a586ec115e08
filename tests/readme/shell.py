"""A shell that runs the README's commands: working directory, environment and output."""

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
"""Variables of an outer make that would change an inner one, such as those of `make test ARGS=…`."""


@dataclass
class Shell:
    """A shell in a folder. Exported variables persist; the variables of an outer make are removed."""

    folder: Path
    environment: dict[str, str | None]
    within_seconds: float = 240.0
    user: int | None = None
    """The user; None for the current one."""
    _exports: list[str] = field(default_factory=list)

    async def type(self, command: str) -> str:
        """Return the output of a command; raises Wrong if it fails."""
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
        """Run a command in the background, in this folder or in another one; it is stopped at the end of the block."""
        # The last command replaces the shell, so that it gets the signal.
        last = command if "&&" in command or command.startswith(("export ", "eval ")) else f"exec {command}"
        script = "\n".join(["set -e", *self._exports, last])
        become = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"] if self.user else []
        return program(
            command.partition(" ")[0],
            ["env", f"--chdir={folder or self.folder}", *become, "bash", "-c", script],
            env={**dict.fromkeys(FROM_MAKE), **self.environment},
            stop_seconds=60.0,
        )

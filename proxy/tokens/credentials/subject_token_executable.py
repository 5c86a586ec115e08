"""A subject token that an executable prints (executable-sourced credentials, AIP-4117)."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.errors import CredentialsInvalid, TokenTimeout
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.credentials.executable import Executable
from proxy.tokens.credentials.members import is_filled
from proxy.tokens.credentials.subject_token import SubjectTokenSource

__all__ = ["ExecutableSource"]

_GRACE_SECONDS: Final = 3.0


class ExecutableSource(SubjectTokenSource):
    """An executable. The sidecar runs it, because google-auth would do so without limits."""

    member = "executable"

    def check_member(self) -> None:
        executable = self.settings["executable"]
        if not isinstance(executable, dict) or not is_filled(executable.get("command"), False):
            raise CredentialsInvalid(f"{self.path}: the executable of its credential_source has no command")

    async def local_subject_token(self, blocking: BlockingCalls) -> str | None:
        executable = Executable(self.path, self.info, self.account)
        seconds = executable.timeout_seconds + _GRACE_SECONDS
        try:
            return await blocking.run(executable.run, resource=f"the executable in {self.path}", seconds=seconds)
        except (asyncio.CancelledError, TokenTimeout):
            executable.stop()
            raise

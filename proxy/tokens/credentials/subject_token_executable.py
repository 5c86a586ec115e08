"""A subject token that an executable prints (executable-sourced credentials, AIP-4117)."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from proxy.errors import CredentialsInvalid, Failure, TokenTimeout
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.credentials.executable import Executable
from proxy.tokens.credentials.file import is_filled
from proxy.tokens.credentials.subject_token import SubjectTokenSource

__all__ = ["ExecutableSource"]

_GRACE_SECONDS: Final = 3.0

_EXIT_CODE: Final = re.compile(r"Executable exited with non-zero return code (-?\d{1,5})\.")
_REPORTED: Final = re.compile(r"Executable returned unsuccessful response: code: ([\w.-]{1,40}),")


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

    def local_failure(self, exc: Exception) -> Failure | None:
        what = f"the executable in {self.path}"
        if type(exc).__name__ == "TimeoutExpired":
            return TokenTimeout(f"{what} gave no subject token in time")
        if isinstance(exc, OSError):
            return CredentialsInvalid(f"{what} cannot be started: {exc.strerror}")
        if isinstance(exc, ValueError) and type(exc).__name__ in ("JSONDecodeError", "UnicodeDecodeError"):
            return CredentialsInvalid(f"{what} printed something other than JSON")
        if ended := _EXIT_CODE.match(str(exc)):
            return CredentialsInvalid(f"{what} ended with exit code {ended[1]}; run it by hand to see why")
        if reported := _REPORTED.match(str(exc)):
            return CredentialsInvalid(f"{what} reports a failure (code {reported[1]}); run it by hand to see why")
        return None

"""The executable of a credential file (executable-sourced credentials, AIP-4117): run it, and read what it printed.

google-auth would keep all that it prints, stop only the process that it started itself, and wait for every process
that inherited the pipe. Here at most 1 MiB is kept, the process group is killed at the deadline, and the run ends with
the executable, even if other processes have the pipe open.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from proxy.errors import CredentialsInvalid, TokenTimeout, TokenUnavailable
from proxy.network.descriptors import lower_descriptor_limit
from proxy.tokens.regular_files import MOST_OCTETS, read_regular

__all__ = ["Executable"]

_ALLOWED: Final = "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES"

_DEFAULT_MILLISECONDS: Final = 30_000
_LEAST_MILLISECONDS: Final = 5_000
_MOST_MILLISECONDS: Final = 120_000
"""As Google's libraries have them."""

_LOOK_SECONDS: Final = 0.05
_REAP_SECONDS: Final = 1.0
_CHUNK_OCTETS: Final = 1 << 16

_CODE: Final = re.compile(r"[\w.-]{1,40}")

_ended_groups: Final[set[int]] = set()
"""Process groups of executables that have ended, of which processes may be left."""

_TOKEN_FIELDS: Final = {
    "urn:ietf:params:oauth:token-type:jwt": "id_token",
    "urn:ietf:params:oauth:token-type:id_token": "id_token",
    "urn:ietf:params:oauth:token-type:saml2": "saml_response",
}


class Executable:
    """One run of the executable in the credential file `path`, whose JSON object is `info`.

    Raises CredentialsInvalid for settings that contradict themselves. `run` is called once, on a thread that may wait;
    `stop` on any.
    """

    def __init__(self, path: str, info: Mapping[str, Any], account: str | None) -> None:
        settings = info["credential_source"]["executable"]
        self._what = f"the executable in {path}"
        timeout = settings.get("timeout_millis") or _DEFAULT_MILLISECONDS
        if not isinstance(timeout, int) or not _LEAST_MILLISECONDS <= timeout <= _MOST_MILLISECONDS:
            raise CredentialsInvalid(
                f"{path}: the timeout_millis of its executable must be a number from {_LEAST_MILLISECONDS} to "
                f"{_MOST_MILLISECONDS}"
            )
        self.timeout_seconds: float = timeout / 1000
        """How long it may take."""
        self._path = path
        self._command: str = settings["command"]
        output = settings.get("output_file")
        self._output_file: str | None = output if isinstance(output, str) and output else None
        self._variables = {
            "GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE": str(info["audience"]),
            "GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE": str(info["subject_token_type"]),
            "GOOGLE_EXTERNAL_ACCOUNT_ID": account or "",
            "GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE": "0",
            "GOOGLE_EXTERNAL_ACCOUNT_REVOKE": "0",
        }
        if account is not None:
            self._variables["GOOGLE_EXTERNAL_ACCOUNT_IMPERSONATED_EMAIL"] = account
        if self._output_file is not None:
            self._variables["GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE"] = self._output_file
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> str:
        """Return the subject token: the one that its output file still has, or one that it prints.

        Google decides whether the latter has expired: this machine's clock may be wrong.
        Raises CredentialsInvalid, TokenTimeout after `timeout_seconds`, or TokenUnavailable once stopped. Nothing that
        it printed is in their sentences.
        """
        if os.environ.get(_ALLOWED) != "1":
            raise CredentialsInvalid(
                f"{self._path} (external_account) cannot be used: Executables need to be explicitly allowed (set "
                f"{_ALLOWED} to '1') to run."
            )
        kept = self._read_output_file()
        if kept is not None and kept.get("success") and self._unexpired(kept.get("expiration_time")):
            return self._subject_token(kept)
        printed = self._execute()
        answer = self._parse(printed) if printed.strip() else self._read_output_file()
        if answer is None:
            raise CredentialsInvalid(f"{self._what} printed nothing; run it by hand to see why")
        return self._subject_token(answer)

    def stop(self) -> None:
        """Kill the executable and its process group; if it does not run yet, it is not started."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.returncode is None:
                _kill_group(self._process)

    def _execute(self) -> bytes:
        try:
            command = shlex.split(self._command)
        except ValueError:
            raise CredentialsInvalid(f"{self._what} has a command whose quotes do not match") from None
        with self._lock:
            if self._stopped:
                raise TokenUnavailable("the mint was given up before it ended")
        try:
            process = subprocess.Popen(  # noqa: S603 - what the credential file names, once the environment allows it
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # It could have a secret.
                env={**os.environ, **self._variables},
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "there is a null character in its command"
            raise CredentialsInvalid(f"{self._what} cannot be started: {why}") from None
        lower_descriptor_limit(process.pid)
        _ended_groups.discard(process.pid)  # the number is free again
        with self._lock:
            self._process = process
            if self._stopped:
                _kill_group(process)
        try:
            printed = self._collect(process)
        finally:
            with self._lock:
                if process.poll() is None:
                    _kill_group(process)
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            process.stdout.close()
            with suppress(subprocess.TimeoutExpired):
                killed = process.wait(_REAP_SECONDS) < 0
                _ended_groups.add(process.pid)
                _reap_groups(_REAP_SECONDS if killed else 0.0)
        if process.returncode != 0:
            raise CredentialsInvalid(
                f"{self._what} ended with exit code {process.returncode}; run it by hand to see why"
            )
        return printed

    def _collect(self, process: subprocess.Popen[bytes]) -> bytes:
        """Return what was printed until the process ended, even if other processes have the pipe open."""
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        pipe = process.stdout.fileno()
        os.set_blocking(pipe, False)
        deadline = time.monotonic() + self.timeout_seconds
        printed = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                with self._lock:
                    ended = process.poll() is not None
                    stopped = self._stopped
                if stopped:
                    raise TokenUnavailable("the mint was given up before it ended")
                remaining = deadline - time.monotonic()
                if remaining <= 0 and not ended:
                    raise TokenTimeout(
                        f"{self._what} gave no subject token in time ({self.timeout_seconds:g} s, its timeout_millis)"
                    )
                if selector.get_map():
                    # What was printed before the end is read after it.
                    if selector.select(0 if ended else min(_LOOK_SECONDS, remaining)):
                        chunk = os.read(pipe, _CHUNK_OCTETS)
                        printed += chunk
                        if not chunk:
                            selector.unregister(pipe)
                        if len(printed) > MOST_OCTETS:
                            raise CredentialsInvalid(f"{self._what} printed more than {MOST_OCTETS // 1024} KiB")
                        continue
                elif not ended:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(min(_LOOK_SECONDS, remaining))
                if ended:
                    return bytes(printed)

    def _read_output_file(self) -> dict[str, Any] | None:
        if self._output_file is None:
            return None
        try:
            content = json.loads(read_regular(self._output_file))
        except (OSError, ValueError, RecursionError):  # Not there yet, or not written to its end.
            return None
        return content if isinstance(content, dict) else None

    def _parse(self, printed: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(printed)
        except (ValueError, RecursionError):  # Not chained: the error holds the text.
            answer = None
        if not isinstance(answer, dict):
            raise CredentialsInvalid(f"{self._what} printed something other than JSON")
        return answer

    def _subject_token(self, answer: Mapping[str, Any]) -> str:
        for name in ("version", "success"):
            if name not in answer:
                raise CredentialsInvalid(f"{self._what}: its response is missing the {name} field")
        if answer["version"] != 1:
            raise CredentialsInvalid(f"{self._what}: its response has another version than 1")
        if not answer["success"]:
            code = str(answer.get("code", ""))
            shown = f" (code {code})" if _CODE.fullmatch(code) else ""
            raise CredentialsInvalid(f"{self._what} reports a failure{shown}; run it by hand to see why")
        field = _TOKEN_FIELDS.get(str(answer.get("token_type")))
        if field is None:
            known = ", ".join(_TOKEN_FIELDS)
            raise CredentialsInvalid(f"{self._what}: its response must have one of these as token_type: {known}")
        token = answer.get(field)
        if not isinstance(token, str) or not token:
            raise CredentialsInvalid(f"{self._what}: its response has no {field}")
        return token

    @staticmethod
    def _unexpired(expires_at: object) -> bool:
        return isinstance(expires_at, int | float) and time.time() < expires_at


def _reap_groups(seconds: float) -> None:
    """Wait for the processes that executables have left, where they are ours now, so many seconds at most.

    The process with number 1 of a container, as which the sidecar may run, inherits all orphans, and each would stay
    as a zombie. Those that live longer are waited for after the next run.
    """
    deadline = time.monotonic() + seconds
    for group in list(_ended_groups):
        try:
            while os.waitpid(-group, os.WNOHANG)[0] or time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        except ChildProcessError:  # none is left
            _ended_groups.discard(group)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was not waited for yet, so that its number is still its own, and its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)

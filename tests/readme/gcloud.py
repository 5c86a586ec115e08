"""A stand-in for `gcloud` that knows the commands of the README to the letter, and does them to an emulated Google."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from proxy.emulator import CloudRun, Google

__all__ = ["Gcloud"]

PROJECT: Final = "my-project"
USER: Final = "you@example.com"
SERVICE: Final = "greeter"

_PROGRAM: Final = """\
#!{python}
import json, socket, sys
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect({socket!r})
    peer.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    answer = json.loads(peer.makefile().readline())
sys.stderr.write(answer and answer + "\\n")
sys.exit(1 if answer else 0)
"""


class Refused(Exception):
    """The real one would not take this."""


class Gcloud:
    """What the commands do."""

    def __init__(self, google: Google, cloud_run: CloudRun, folder: Path) -> None:
        self._google = google
        self._cloud_run = cloud_run
        self._folder = folder
        self._accounts: set[str] = set()
        self._deployed = False
        self._logged_in = False

    @asynccontextmanager
    async def on_path(self, environment: dict[str, str | None]) -> AsyncIterator[None]:
        """Put `gcloud` first on the PATH of an environment for the time of a `with`."""
        address, folder = str(self._folder / "gcloud.sock"), self._folder / "bin"
        folder.mkdir()
        command = folder / "gcloud"
        command.write_text(_PROGRAM.format(python=sys.executable, socket=address))
        command.chmod(0o755)
        environment["PATH"] = f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        server = await asyncio.start_unix_server(self._asked, address)
        async with server:
            yield

    def check(self) -> None:
        """Raise AssertionError unless everything that a reader needs was done."""
        assert self._deployed
        assert self._logged_in

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        argv = json.loads(await reader.readline())
        try:
            self.do(argv)
            answer = ""
        except Refused as exc:
            answer = f"gcloud {shlex.join(argv)}: {exc}"
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    def do(self, argv: list[str]) -> None:
        """Do one command; raises Refused for one that is not known to the letter."""
        words: list[str] = []
        options: dict[str, str] = {}
        rest = iter(argv)
        for word in rest:
            if not word.startswith("--"):
                words.append(word)
            elif word in ("--use-http2", "--no-allow-unauthenticated"):
                options[word] = ""
            else:
                options[word] = next(rest, "")
        known: dict[tuple[str, ...], Callable[[list[str], dict[str, str]], None]] = {
            ("run", "deploy"): self._deploy,
            ("iam", "service-accounts", "create"): self._create,
            ("run", "services", "add-iam-policy-binding"): self._let_invoke,
            ("iam", "service-accounts", "add-iam-policy-binding"): self._let_impersonate,
            ("auth", "application-default", "login"): self._log_in,
            ("run", "services", "update"): self._update,
        }
        for prefix, does in known.items():
            if tuple(words[: len(prefix)]) == prefix:
                does(words[len(prefix) :], options)
                return
        raise Refused("no such command here")

    def _deploy(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options, "--source", "--region", "--use-http2", "--no-allow-unauthenticated")
        self._service(words)
        self._deployed = True

    def _create(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options)
        account = f"{words[0]}@{PROJECT}.iam.gserviceaccount.com"
        self._google.add_account(account)
        self._accounts.add(account)

    def _let_invoke(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options, "--region", "--member", "--role")
        self._service(words)
        if options["--role"] != "roles/run.invoker":
            raise Refused("that role lets nobody call")
        kind, _, email = options["--member"].partition(":")
        if kind != "serviceAccount" or email not in self._accounts:
            raise Refused(f"there is no member {options['--member']}")
        self._cloud_run.invokers.add(email)

    def _let_impersonate(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options, "--member", "--role")
        if words[0] not in self._accounts:
            raise Refused(f"there is no account {words[0]}")
        if options["--member"] != f"user:{USER}" or options["--role"] != "roles/iam.serviceAccountOpenIdTokenCreator":
            raise Refused("that is another member, or another role")
        self._google.allow_impersonation(USER, words[0])

    def _log_in(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options)
        file = self._folder / "gcloud" / "application_default_credentials.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(self._google.user_file(USER)))
        self._logged_in = True

    def _update(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options, "--region", "--add-custom-audiences")
        self._service(words)
        self._cloud_run.custom_audiences += (options["--add-custom-audiences"],)

    def _service(self, words: list[str]) -> None:
        if words != [SERVICE]:
            raise Refused(f"there is no service {' '.join(words)}")


def _exactly(options: dict[str, str], *names: str) -> None:
    if set(options) != set(names):
        raise Refused(f"options are {', '.join(sorted(options))}, not {', '.join(sorted(names))}")

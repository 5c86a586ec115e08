"""A stand-in for `gcloud`: it accepts exactly the README's commands, and applies them to an emulated Google."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from proxy.emulator import CloudRun, Google
from tests.readme.stand_in import Call, Refused, read

__all__ = ["Gcloud"]

PROJECT: Final = "my-project"
USER: Final = "you@example.com"
SERVICE: Final = "greeter"
LONGEST_SECONDS: Final = 3600
"""The request timeout of Cloud Run."""
FLAGS: Final = ("--use-http2", "--no-allow-unauthenticated")
VALUED: Final = ("--source", "--region", "--member", "--role", "--add-custom-audiences", "--ingress", "--timeout")


class Gcloud:
    """The effects of the commands."""

    def __init__(self, google: Google, cloud_run: CloudRun) -> None:
        self._google = google
        self._cloud_run = cloud_run
        self._accounts: set[str] = set()
        self._deployed = False
        self._logged_in = False

    def check(self) -> None:
        """Raise AssertionError unless all commands that a reader needs were run."""
        assert self._deployed
        assert self._logged_in

    async def do(self, call: Call) -> str:
        """Run one command, which prints nothing; raises Refused for an unknown command."""
        words, options = read(call.words, flags=FLAGS, valued=VALUED)
        if words == ["auth", "application-default", "login"]:
            self._log_in(call.environment, options)
            return ""
        known: dict[tuple[str, ...], Callable[[list[str], dict[str, str]], None]] = {
            ("run", "deploy"): self._deploy,
            ("iam", "service-accounts", "create"): self._create,
            ("run", "services", "add-iam-policy-binding"): self._let_invoke,
            ("iam", "service-accounts", "add-iam-policy-binding"): self._let_impersonate,
            ("run", "services", "update"): self._update,
        }
        for prefix, does in known.items():
            if tuple(words[: len(prefix)]) == prefix:
                does(words[len(prefix) :], options)
                return ""
        raise Refused("no such command here")

    def _deploy(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options, "--source", "--region", "--use-http2", "--no-allow-unauthenticated")
        self._service(words)
        self._deployed = True

    def _create(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options)
        (name,) = words
        account = f"{name}@{PROJECT}.iam.gserviceaccount.com"
        self._google.add_account(account)
        self._accounts.add(account)

    def _let_invoke(self, words: list[str], options: dict[str, str]) -> None:
        _exactly(options, "--region", "--member", "--role")
        self._service(words)
        if options["--role"] != "roles/run.invoker":
            raise Refused("this role does not allow calls")
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

    def _log_in(self, environment: Mapping[str, str], options: dict[str, str]) -> None:
        _exactly(options)
        home = Path(environment["HOME"])
        file = home / ".config/gcloud/application_default_credentials.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(json.dumps(self._google.user_file(USER)))
        os.chown(file, home.stat().st_uid, home.stat().st_gid)
        self._logged_in = True

    def _update(self, words: list[str], options: dict[str, str]) -> None:
        self._service(words)
        what = {name: value for name, value in options.items() if name != "--region"}
        match list(what.items()):
            case [("--add-custom-audiences", audience)] if audience.startswith("https://"):
                self._cloud_run.custom_audiences += (audience,)
            case [("--ingress", "all" | "internal" | "internal-and-cloud-load-balancing")]:
                pass  # the emulated ingress blocks nothing
            case [("--timeout", seconds)] if seconds.isdecimal() and 1 <= int(seconds) <= LONGEST_SECONDS:
                pass  # the emulated service has no timeout
            case _:
                raise Refused(f"it cannot be updated like this: {what}")
        if "--region" not in options:
            raise Refused("the region is missing")

    def _service(self, words: list[str]) -> None:
        if words != [SERVICE]:
            raise Refused(f"there is no service {' '.join(words)}")


def _exactly(options: dict[str, str], *names: str) -> None:
    if set(options) != set(names):
        raise Refused(f"options are {', '.join(sorted(options))}, not {', '.join(sorted(names))}")

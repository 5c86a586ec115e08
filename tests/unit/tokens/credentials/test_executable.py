"""Executable-sourced credentials, with real executables."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import CredentialsInvalid, TokenTimeout, TokenUnavailable
from proxy.network import descriptors
from proxy.tokens.credentials import executable as executable_module
from proxy.tokens.credentials.executable import Executable

ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
ACCOUNT = "middle@project.iam.gserviceaccount.com"
GOOD: dict[str, Any] = {"version": 1, "success": True, "token_type": ID_TOKEN, "id_token": "the-token"}
SECRET = "eyJzZWNyZXQi"


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")


Script = Callable[..., Executable]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return one run of an executable that does what these lines of sh say."""

    def made(lines: str, account: str | None = None, **settings: Any) -> Executable:
        path = tmp_path / "run.sh"
        path.write_text(f"#!/bin/sh\ncd '{tmp_path}'\n{lines}\n")
        path.chmod(0o755)
        info = {
            "audience": "//iam.googleapis.com/pool",
            "subject_token_type": ID_TOKEN,
            "credential_source": {"executable": {"command": f"'{path}' argument", **settings}},
        }
        return Executable("/adc.json", info, account)

    return made


@pytest.fixture
def _inheriting_orphans() -> Iterator[None]:
    """Inherit the children of children that exit, as process 1 does."""
    set_child_subreaper = partial(ctypes.CDLL(None).prctl, 36)
    set_child_subreaper(1, 0, 0, 0)
    yield
    set_child_subreaper(0, 0, 0, 0)


def prints(answer: object) -> str:
    return f"echo '{json.dumps(answer)}'"


def gone(pid: int) -> bool:
    """Return whether a process is over, though perhaps not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], 10)[0]
    finally:
        os.close(descriptor)


def test_it_has_the_limit_of_open_files_that_the_sidecar_was_started_with(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some programs close every number up to the limit, and the hard one may be a thousand millions."""
    lowered = tmp_path / "lowered"
    os.mkfifo(lowered)

    def lower(pid: int) -> None:
        descriptors.lower_descriptor_limit(pid)
        lowered.write_bytes(b"")

    monkeypatch.setattr(executable_module, "lower_descriptor_limit", lower)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
        descriptors.raise_descriptor_limit()
        answer = json.dumps({**GOOD, "id_token": "$(ulimit -Sn)/$(ulimit -Hn)"}).replace('"', '\\"')
        assert script(f'cat lowered\necho "{answer}"').run() == f"{hard - 1}/{hard}"
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        descriptors.take_first_descriptor_limit(None)


def test_only_standard_output_of_the_executable_is_its_response(script: Script) -> None:
    assert script(f"echo noise >&2\n{prints(GOOD)}").run() == "the-token"


def test_a_saml_response_is_a_subject_token_too(script: Script) -> None:
    answer = {
        "version": 1,
        "success": True,
        "token_type": "urn:ietf:params:oauth:token-type:saml2",
        "saml_response": "<saml/>",
    }
    assert script(prints(answer)).run() == "<saml/>"


def test_the_environment_of_the_executable_says_what_the_token_is_for(script: Script, tmp_path: Path) -> None:
    output = tmp_path / "output.json"
    answer = json.dumps(GOOD)
    lines = f"env | grep ^GOOGLE_EXTERNAL > environment; echo \"$1\" >> environment; echo '{answer}' > output.json"
    assert script(lines, ACCOUNT, output_file=str(output)).run() == "the-token"
    assert sorted((tmp_path / "environment").read_text().splitlines()) == [
        "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1",
        "GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE=//iam.googleapis.com/pool",
        f"GOOGLE_EXTERNAL_ACCOUNT_ID={ACCOUNT}",
        f"GOOGLE_EXTERNAL_ACCOUNT_IMPERSONATED_EMAIL={ACCOUNT}",
        "GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE=0",
        f"GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE={output}",
        "GOOGLE_EXTERNAL_ACCOUNT_REVOKE=0",
        f"GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE={ID_TOKEN}",
        "argument",
    ]


@pytest.mark.parametrize("expiration", [5, -1, 4102444800, "5", None])
def test_a_new_token_is_returned_whatever_the_clock_of_this_machine_says(script: Script, expiration: object) -> None:
    assert script(prints({**GOOD, "expiration_time": expiration})).run() == "the-token"


@pytest.mark.parametrize(
    ("kept", "runs"),
    [
        ({**GOOD, "expiration_time": 4102444800}, False),
        ({**GOOD, "expiration_time": 5}, True),
        (GOOD, True),
        ({**GOOD, "success": False, "expiration_time": 4102444800}, True),
        ("{", True),
        ([], True),
    ],
)
def test_an_output_file_is_used_while_its_token_is_valid(
    script: Script, tmp_path: Path, kept: object, runs: bool
) -> None:
    output = tmp_path / "output.json"
    output.write_text(kept if isinstance(kept, str) else json.dumps(kept))
    printed = prints({**GOOD, "id_token": "a-new-one"})
    assert script(printed, output_file=str(output)).run() == ("a-new-one" if runs else "the-token")


def test_an_output_file_that_is_a_pipe_is_not_waited_for(script: Script, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert script(prints(GOOD), output_file=str(tmp_path / "pipe")).run() == "the-token"
    with pytest.raises(CredentialsInvalid, match="printed nothing"):
        script("true", output_file=str(tmp_path / "pipe")).run()


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (f"echo {SECRET}; exit 3", "ended with exit code 3; run it by hand"),
        (f"echo {SECRET}", "printed something other than JSON"),
        (f"echo '[\"{SECRET}\"]'", "printed something other than JSON"),
        ("printf '\\377'", "printed something other than JSON"),
        ("true", "printed nothing"),
        (prints({"success": True}), "is missing the version field"),
        (prints({"version": 1, "note": SECRET}), "is missing the success field"),
        (prints({**GOOD, "version": 2}), "another version than 1"),
        (prints({"version": 1, "success": False, "code": "401", "message": SECRET}), r"reports a failure \(code 401\)"),
        (prints({"version": 1, "success": False, "code": f"{SECRET} {SECRET}"}), "reports a failure; run it by hand"),
        (prints({**GOOD, "token_type": SECRET}), "must have one of these as token_type"),
        (prints({**GOOD, "id_token": ""}), "has no id_token"),
        (prints({**GOOD, "id_token": [SECRET]}), "has no id_token"),
    ],
)
def test_an_error_of_the_executable_is_described_without_its_output(
    script: Script, told: Callable[[BaseException], str], lines: str, what: str
) -> None:
    with pytest.raises(CredentialsInvalid, match=f"the executable in /adc.json.* {what}") as caught:
        script(lines).run()
    assert SECRET not in told(caught.value)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("/nowhere/at-all", "cannot be started: No such file"),
        ("/", "cannot be started: Permission denied"),
        ("'unbalanced", "whose quotes do not match"),
        ("a\0b", "null character"),
    ],
)
def test_a_command_that_cannot_be_started_is_reported(script: Script, command: str, what: str) -> None:
    with pytest.raises(CredentialsInvalid, match=what):
        script("", command=command).run()


def test_an_executable_is_run_only_if_the_environment_allows_it(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "0")
    with pytest.raises(CredentialsInvalid, match="Executables need to be explicitly allowed"):
        script("touch ran").run()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("given", "seconds"), [(None, 30), (0, 30), (5000, 5), (7500, 7.5), (120_000, 120)])
def test_an_executable_has_the_timeout_of_its_file(script: Script, given: int | None, seconds: float) -> None:
    assert script("", timeout_millis=given).timeout_seconds == seconds


@pytest.mark.parametrize("given", [4999, 120_001, -1, "5000", 1e9, True])
def test_a_timeout_that_googles_libraries_refuse_is_refused(script: Script, given: object) -> None:
    with pytest.raises(
        CredentialsInvalid, match="timeout_millis of its executable must be a number from 5000 to 12000"
    ):
        script("", timeout_millis=given)


def test_an_executable_that_ignores_sigterm_is_killed_at_its_deadline_with_its_children(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executable_module, "_LEAST_MILLISECONDS", 1)
    lines = "trap '' TERM HUP INT\nsleep 600 & echo $! > child\necho $$ > parent\nwhile :; do sleep 600; done"
    started = time.monotonic()
    with pytest.raises(TokenTimeout, match=r"gave no subject token in time \(0\.5 s, its timeout_millis\)"):
        script(lines, timeout_millis=500).run()
    assert time.monotonic() - started < 10
    for name in ("parent", "child"):
        pid = int((tmp_path / name).read_text())
        if not gone(pid):
            wait_until_gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
@pytest.mark.usefixtures("_inheriting_orphans")
def test_no_zombie_is_left_of_the_children_of_a_killed_executable(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executable_module, "_LEAST_MILLISECONDS", 1)
    with pytest.raises(TokenTimeout):
        script("sleep 600 & echo $! > first\nsleep 600 & echo $! > second\nwait", timeout_millis=500).run()
    for name in ("first", "second"):
        assert not Path(f"/proc/{(tmp_path / name).read_text().strip()}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
@pytest.mark.usefixtures("_inheriting_orphans")
def test_children_that_outlive_an_executable_are_waited_for_after_the_next_run(script: Script, tmp_path: Path) -> None:
    assert script(f"sleep 600 & echo $! > child\n{prints(GOOD)}").run() == "the-token"
    child = int((tmp_path / "child").read_text())
    os.kill(child, 9)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert script(prints(GOOD)).run() == "the-token"
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


def test_an_executable_that_closes_its_output_and_keeps_running_is_killed_at_its_deadline(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executable_module, "_LEAST_MILLISECONDS", 1)
    with pytest.raises(TokenTimeout):
        script("exec >&- 2>&-\nsleep 600", timeout_millis=300).run()


def test_an_executable_with_endless_output_is_stopped_at_the_limit(script: Script) -> None:
    with pytest.raises(CredentialsInvalid, match="printed more than 1024 KiB"):
        script("exec cat /dev/zero").run()


def test_the_exit_of_an_executable_counts_even_if_a_child_has_its_output_open(script: Script, tmp_path: Path) -> None:
    started = time.monotonic()
    assert script(f"sleep 600 & echo $! > child\n{prints(GOOD)}", timeout_millis=60_000).run() == "the-token"
    assert time.monotonic() - started < 30
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_an_executable_can_be_stopped_at_once(script: Script, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    one = script("trap '' TERM\necho $$ > ready\nsleep 600", timeout_millis=120_000)
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            one.run()
        except TokenUnavailable as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    pid = int((tmp_path / "ready").read_text())  # a pipe: this waits until it runs
    one.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(failure) for failure in outcome] == [TokenUnavailable]
    assert gone(pid)


def test_an_executable_that_was_stopped_before_its_start_does_not_start(script: Script, tmp_path: Path) -> None:
    one = script("touch ran")
    one.stop()
    with pytest.raises(TokenUnavailable):
        one.run()
    assert not (tmp_path / "ran").exists()


def test_no_descriptor_is_left_open(script: Script) -> None:
    script(prints(GOOD)).run()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        script(prints(GOOD)).run()
        with pytest.raises(CredentialsInvalid):
            script("exit 1").run()
    assert sorted(os.listdir("/proc/self/fd")) == before

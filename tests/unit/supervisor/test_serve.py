"""`serve` in this process: exit codes and sentences."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.downstream.channel import Channel
from proxy.downstream.config import ListenerConfig
from proxy.exit_codes import ExitCode
from proxy.settings.reading import CommandLine
from proxy.supervisor import workers as workers_module
from proxy.supervisor.reloading import Reloading
from proxy.supervisor.serve import serve, work
from tests.support.settings import plain_settings
from tests.support.signals import signals_restored

HOST = "127.0.0.1"
COMMAND_LINE = CommandLine.of_this_process("proxy.cli.settings_process")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    with signals_restored():
        yield


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", ["listen", "admin"])
def test_an_address_in_use_exits_with_1_and_a_sentence(
    workers: int, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # another sidecar would get requests for this one
        taken.bind((HOST, 0))
        taken.listen()
        busy = f"{HOST}:{taken.getsockname()[1]}"
        given: dict[str, object] = {"listen": (busy,), "admin": "off"} if which == "listen" else {"admin": busy}
        assert serve(plain_settings(workers=workers, **given), COMMAND_LINE) == 1
    said = capsys.readouterr().err
    assert f"cloudrun-sidecar: cannot listen on {busy}" in said
    assert "Address already in use" in said


@pytest.mark.parametrize("unix", [False, True])
def test_a_supervisor_waits_until_the_workers_of_a_killed_one_have_left_the_admin_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unix: bool
) -> None:
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as taken:
        taken.bind(f"{tmp_path}/s" if unix else (HOST, 0))
        taken.listen()
        busy = f"unix:{tmp_path}/s" if unix else f"{HOST}:{taken.getsockname()[1]}"
        monkeypatch.setattr(time, "sleep", lambda _: taken.close())
        monkeypatch.setattr(workers_module, "run_workers", lambda *_, inherited, **__: inherited.admin.listen() or 0)
        assert serve(plain_settings(workers=2, listen=(f"{HOST}:0",), admin=busy), COMMAND_LINE) == 0
        assert taken.fileno() < 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unusable_address_exits_with_2(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert serve(plain_settings(workers=workers, listen=(f"unix:{tmp_path}/file",), admin="off"), COMMAND_LINE) == 2
    assert f"cloudrun-sidecar: cannot listen on unix:{tmp_path}/file" in capsys.readouterr().err


NO_THREAD = """
import sys, threading
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_limit_on_threads_exits_with_1_and_a_sentence(workers: int, tmp_path: Path) -> None:
    program = [sys.executable, "-c", f"{NO_THREAD}from proxy.cli import main; main()", "serve", f"--workers={workers}"]
    program += [f"--listen=unix:{tmp_path}/s", "--admin=off", "--upstream=https://a-123456789012.europe-west1.run.app"]
    ran = subprocess.run(program, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == ExitCode.FAILED
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("cloudrun-sidecar: cannot start a thread: raise the limit of processes and threads")
    assert last.endswith("or of memory (ulimit -v)")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_low_limit_on_open_files_exits_with_2_and_a_sentence(workers: int) -> None:
    program = ["prlimit", "--nofile=13:13", sys.executable, "-m", "proxy", "serve", f"--workers={workers}"]
    program += ["--listen=127.0.0.1:0", "--admin=off", "--upstream=https://a-123456789012.europe-west1.run.app"]
    ran = subprocess.run(program, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == ExitCode.SETTINGS_UNUSABLE
    said = "the limit of open files is 13, and 32 are the least: raise it (ulimit -n, LimitNOFILE)"
    assert ran.stderr == f"cloudrun-sidecar: {said}\n"


def test_the_reading_of_settings_exits_with_1_at_a_limit_on_threads() -> None:
    ours, its = socket.socketpair()
    with ours, its:
        code = f"{NO_THREAD}from proxy.cli.settings_process import main; main({its.fileno()})"
        program = [sys.executable, "-c", code, "serve"]
        ran = subprocess.run(program, stderr=subprocess.PIPE, text=True, check=False, pass_fds=[its.fileno()])
    assert ran.returncode == ExitCode.FAILED
    assert ran.stderr.startswith("cloudrun-sidecar: cannot start a thread: raise the limit of processes")


def test_another_error_is_not_taken_for_a_limit_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: threading.Thread) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(Reloading, "start", failing)
    with pytest.raises(RuntimeError, match="something else"):
        serve(plain_settings(workers=2), COMMAND_LINE)


def test_serving_exits_with_0_after_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def end() -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(path)):
                pass
            probe.sendall(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
            probe.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    assert serve(plain_settings(listen=(f"unix:{path}",), admin="off", http2_engine="h2"), COMMAND_LINE) == 0
    ending.join()
    assert not path.exists()


def test_a_worker_of_another_version_says_that_a_restart_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """The package was upgraded in place, and a worker has died: the new one reads what the old supervisor wrote."""
    ours, its = socket.socketpair()
    with ours, its, pytest.raises(SystemExit) as ended:
        work(ListenerConfig((), 2, '{"version": 0}'), Channel(its, []))
    assert ended.value.code == ExitCode.FAILED
    said = json.loads(capsys.readouterr().err)
    assert said["reason"].startswith("the supervisor runs another version of cloudrun-sidecar, restart it: ")
    assert said["pid"] == os.getpid()


def test_a_worker_says_in_a_log_line_why_it_cannot_serve(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file was damaged since the supervisor tried it, and a worker has died."""
    (tmp_path / "broken").touch()
    settings = plain_settings(
        workers=2, tls_listen=(f"{HOST}:0",), tls_certificate=tmp_path / "broken", tls_key=tmp_path / "broken"
    )
    ours, its = socket.socketpair()
    with ours, its, pytest.raises(SystemExit) as ended:
        work(ListenerConfig((), 2, settings.to_json()), Channel(its, []))
    assert ended.value.code == ExitCode.SETTINGS_UNUSABLE
    said = json.loads(capfd.readouterr().err)
    assert (said["message"], said["severity"], said["pid"]) == ("worker cannot serve", "ERROR", os.getpid())
    assert f"{tmp_path}/broken" in said["reason"]

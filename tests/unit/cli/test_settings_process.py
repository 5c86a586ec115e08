"""`serve` and the process that reads its settings, as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SERVE = [sys.executable, "-m", "proxy", "serve"]

TOML = 'workers = 3\n[routes.a]\nurl = "https://a.run.app"\n'

SERVES = """
import os, sys, types
from proxy.cli import main
def serve(settings, command_line):
    sys.stderr.write("a line\\n")
    with open("seen", "w") as seen:
        names = [os.path.realpath(f"/proc/self/fd/{number}") for number in range(3)]
        loaded = [name for name in ("click", "pydantic", "proxy.settings.model") if name in sys.modules]
        print(os.getpid(), settings.routes[0].origin, *names, *loaded, file=seen)
    return 7
sys.modules["proxy.supervisor.serve"] = types.ModuleType("serve")
sys.modules["proxy.supervisor.serve"].serve = serve
main()
"""
"""A program that writes, instead of serving, which process it is, its settings, its first three descriptors, and what
it has loaded of the modules that read settings."""


def test_the_started_process_serves_and_has_not_imported_click_or_pydantic() -> None:
    Path("program").write_text(SERVES)
    argv = [sys.executable, "program", "serve", "--upstream", "https://a"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as program:
        _, said = program.communicate()
    assert (program.returncode, said) == (7, "a line\n")
    pid, origin, *_, stderr = Path("seen").read_text().split()
    assert (int(pid), origin) == (program.pid, "https://a")
    assert stderr.startswith("/proc/")  # the last word is a descriptor, not a module


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&- 2>&-", "2>&-", ">&-", "<&-"])
def test_closed_standard_streams_are_opened_as_dev_null(closed: str) -> None:
    """A socket with the number of stderr would get the lines of the log."""
    Path("program").write_text(SERVES)
    argv = ["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "program", "serve", "--upstream", "https://a"]
    ran = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    assert ran.returncode == 7
    assert Path("seen").read_text().split()[2:] == ["/dev/null"] * 3


@pytest.mark.parametrize("closed", ["<&- >&-", "<&-", ">&-"])
def test_problems_are_printed_with_stdin_or_stdout_closed(closed: str) -> None:
    argv = ["bash", "-c", f'exec "$@" {closed}', "bash", *SERVE]
    ran = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("cloudrun-sidecar: 1 problem with the settings\n  settings: there is no route; ")


@pytest.mark.parametrize("dash", [["-"], ["/dev/stdin"]])
def test_a_program_read_from_a_pipe_serves(dash: list[str]) -> None:
    argv = [sys.executable, *dash, "serve", "--upstream", "https://a"]
    ran = subprocess.run(argv, input=SERVES, capture_output=True, check=False, text=True)
    assert (ran.returncode, ran.stderr) == (7, "a line\n")


def test_the_command_may_follow_a_double_dash() -> None:
    Path("program").write_text(SERVES)
    argv = [sys.executable, "program", "--", "serve", "--upstream", "https://a"]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 7


# ---- what it prints


def test_usage_errors_exit_with_2_and_name_the_program_as_it_was_started() -> None:
    ran = subprocess.run([*SERVE, "--nonsense"], capture_output=True, check=False, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("cloudrun-sidecar: there is no option --nonsense")
    assert "`python -m proxy serve --help`" in ran.stderr
    Path("cloudrun-sidecar").write_text("from proxy.cli import main\nmain()\n")
    argv = [sys.executable, "cloudrun-sidecar", "serve", "--nonsense"]
    ran = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert ran.returncode == 2
    assert "`cloudrun-sidecar serve --help`" in ran.stderr


def test_the_exit_code_is_right_with_sigchld_ignored() -> None:
    """A process whose parent ignores SIGCHLD inherits that, and could not wait for the process that reads."""
    argv = ["bash", "-c", "trap '' CHLD; exec \"$@\"", "bash", *SERVE, "--nonsense"]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 2


def test_help_goes_to_standard_output_with_exit_code_0() -> None:
    ran = subprocess.run([*SERVE, "--help"], capture_output=True, check=False, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Usage: python -m proxy serve [OPTIONS]\n")


def test_completion_knows_the_flags_of_serve() -> None:
    words = {
        "_CLOUDRUN_SIDECAR_COMPLETE": "bash_complete",
        "COMP_WORDS": "cloudrun-sidecar serve --wor",
        "COMP_CWORD": "2",
    }
    Path("cloudrun-sidecar").write_text("from proxy.cli import main\nmain()\n")
    for more in ([], ["serve"]):
        argv = [sys.executable, "cloudrun-sidecar", *more]
        ran = subprocess.run(argv, capture_output=True, check=True, text=True, env={**os.environ, **words})
        assert ran.stdout == "plain,--workers\n"


# ---- what it reads


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_settings_can_be_read_from_standard_input(name: str) -> None:
    argv = [*SERVE, "--config", name, "--print-config"]
    ran = subprocess.run(argv, input=TOML, capture_output=True, check=True, text=True)
    assert f"workers = 3  # {name}: workers\n" in ran.stdout


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_settings_can_be_read_from_an_inherited_descriptor(name: str) -> None:
    """As with bash's `--config <(…)`."""
    reader, writer = os.pipe()
    os.write(writer, TOML.encode())
    os.close(writer)
    argv = [*SERVE, "--config", name.format(reader), "--print-config"]
    ran = subprocess.run(argv, capture_output=True, check=True, text=True, pass_fds=(reader,))
    os.close(reader)
    assert f"workers = 3  # {name.format(reader)}: workers\n" in ran.stdout


# ---- signals


@pytest.fixture
def starting() -> Callable[[], tuple[subprocess.Popen[str], int]]:
    """Start `serve` with settings that never end; return it, and a descriptor at its end when no process is left."""
    os.mkfifo("fifo")

    def start() -> tuple[subprocess.Popen[str], int]:
        alive, inherited = os.pipe()
        program = subprocess.Popen(
            [*SERVE, "--config", "fifo"],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pass_fds=(inherited,), start_new_session=True,
            # A shell that runs tests in the background lets them ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(inherited)
        return program, alive

    return start


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 1, "cloudrun-sidecar: interrupted\n"),
        (signal.SIGTERM, -signal.SIGTERM, ""),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_signal_while_settings_are_read_ends_both_processes(
    starting: Callable[[], tuple[subprocess.Popen[str], int]],
    number: signal.Signals,
    code: int,
    said: str,
    whole_group: bool,
) -> None:
    program, alive = starting()
    with open("fifo", "wb"), program:  # Opened, the process that reads the settings has them open, too.
        (os.killpg if whole_group else os.kill)(program.pid, number)
        _, stderr = program.communicate()
        assert os.read(alive, 1) == b""
        os.close(alive)
    assert (program.returncode, stderr) == (code, said)

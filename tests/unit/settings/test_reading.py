"""The process that reads the settings: what it is started with, how it ends, what is said about it.

The readers here are small modules in the working directory; that of `serve` has its tests in `unit/cli`.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.settings.reading import CommandLine, SettingsNotRead, read_settings
from tests.unit.settings.given import upstream

READERS = {
    "reports": """
        report = {
            "argv": sys.argv, "package": __main__.__package__, "path": sys.path, "environment": dict(os.environ),
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "flags": list(sys.flags),
        }
        with open("report", "w") as file:
            json.dump(report, file)
        answer.sendall(open("settings", "rb").read())
    """,
    "fails": """
        print("printed")
        print("wrong", file=sys.stderr)
        sys.exit(int(sys.argv[1]))
    """,
    "waits": """
        print("started", file=sys.stderr, flush=True)
        answer.recv(1)
    """,
    "hangs": """
        print("started", file=sys.stderr, flush=True)
        signal.pause()
    """,
    "dies": """
        os.kill(os.getpid(), signal.SIGKILL)
    """,
    "sends_half": """
        answer.sendall(open("settings", "rb").read()[:100])
    """,
    "reads_a_file": """
        content = open(sys.argv[1]).read()
        with open("copy", "w") as copy:
            copy.write(content)
        answer.sendall(open("settings", "rb").read())
    """,
}


@pytest.fixture(autouse=True)
def _readers(_elsewhere: None) -> None:
    """Write the readers, and the settings that they send, to the working directory."""
    for name, body in READERS.items():
        head = "import __main__, json, os, signal, socket, sys\n\ndef main(descriptor):\n"
        lines = f"answer = socket.socket(fileno=descriptor)\n{textwrap.dedent(body)}"
        Path(f"reader_{name}.py").write_text(head + textwrap.indent(lines, "    "))
    Path("settings").write_text(upstream().plain().to_json())


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No process, descriptor or thread is left behind, however a reading ends."""
    before = children(), os.listdir("/proc/self/fd")
    yield
    assert (children(), os.listdir("/proc/self/fd")) == before
    for thread in threading.enumerate():
        if thread.name == "settings":
            thread.join()


def children() -> set[str]:
    """Ids of the processes that this one has started and not waited for."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def command_line(reader: str, *arguments: str, environment: Mapping[str, str] | None = None) -> CommandLine:
    return CommandLine(
        reader=f"reader_{reader}",
        program="/some/where/cloudrun-sidecar",
        package="some.package",
        arguments=arguments,
        environment=environment or {},
        import_path=(os.getcwd(), *sys.path),
    )


def report() -> dict[str, Any]:
    found = json.loads(Path("report").read_text())
    assert isinstance(found, dict)
    return found


# ---- what it is started with


def test_the_process_sends_the_settings() -> None:
    assert read_settings(command_line("reports")) == upstream().plain()


def test_the_process_gets_arguments_environment_import_path_and_the_name_of_the_program() -> None:
    odd = "\udcff ' \\ {x} é"
    given = command_line("reports", "serve", odd, environment={"A": odd, "PYTHONUTF8": "1"})
    read_settings(given)
    told = report()
    assert told["argv"] == ["/some/where/cloudrun-sidecar", "serve", odd]
    assert told["package"] == "some.package"
    assert told["path"] == list(given.import_path)
    assert {name: told["environment"][name] for name in ("A", "PYTHONUTF8")} == given.environment
    assert "HOME" not in told["environment"]


@pytest.mark.parametrize("flags", [["-I"], ["-E", "-s"], ["-P", "-O"], ["-X", "utf8", "-W", "error"]])
def test_the_process_has_the_flags_of_the_interpreter(flags: list[str]) -> None:
    """`-I` and `-P` keep the working directory out of the import path, and `-E` the environment."""
    code = f"""
import sys
sys.path[:] = {[os.getcwd(), *sys.path]!r}
from proxy.settings.reading import CommandLine, read_settings
read_settings(CommandLine.of_this_process("reader_reports"))
print(list(sys.flags))
"""
    ran = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, check=True, text=True)
    assert report()["flags"] == json.loads(ran.stdout.replace("False", "false").replace("True", "true"))


def test_signals_are_blocked_in_the_process_and_not_in_the_caller() -> None:
    """Ctrl-C reaches both processes, and only this one answers it."""
    before = signals_blocked()
    read_settings(command_line("reports"))
    assert {1, 2, 3, 15} <= set(report()["blocked"])
    assert signals_blocked() == before


def signals_blocked() -> str:
    return next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigBlk"))


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_inheritable_descriptor_has_the_same_number_in_the_process(name: str) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    os.write(writer, b"from a pipe")
    os.close(writer)
    read_settings(command_line("reads_a_file", name.format(reader)))
    os.close(reader)
    assert Path("copy").read_text() == "from a pipe"


@pytest.mark.parametrize("number", range(3, 9))
def test_the_number_of_a_closed_descriptor_fails_at_once(number: int) -> None:
    """The socket of the process may have any of these numbers; opening it by name fails."""
    if Path(f"/proc/self/fd/{number}").exists() and os.get_inheritable(number):
        number = 99
    with pytest.raises(SettingsNotRead) as ended:
        read_settings(command_line("reads_a_file", f"/dev/fd/{number}"))
    assert (ended.value.exit_code, str(ended.value)) == (1, "")


# ---- how it ends


@pytest.mark.parametrize("exit_code", [0, 1, 2])
def test_without_settings_the_exit_code_is_passed_on_and_the_output_is_untouched(
    exit_code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsNotRead) as ended:
        read_settings(command_line("fails", str(exit_code)))
    assert (ended.value.exit_code, str(ended.value)) == (exit_code, "")
    assert capfd.readouterr() == ("printed\n", "wrong\n")


@pytest.mark.parametrize("reader", ["waits", "hangs"])
def test_the_process_is_killed_after_the_deadline(reader: str) -> None:
    with pytest.raises(SettingsNotRead, match=r"^the settings were not read within 0\.1 seconds: ") as ended:
        read_settings(command_line(reader), seconds=0.1)
    assert ended.value.exit_code == 1


def test_the_error_names_the_signal_that_ended_the_process_and_what_to_do() -> None:
    said = r"^the process that reads the settings was ended by SIGKILL; if .* raise the limit of memory$"
    with pytest.raises(SettingsNotRead, match=said) as ended:
        read_settings(command_line("dies"))
    assert ended.value.exit_code == 1


def test_incomplete_settings_are_refused() -> None:
    with pytest.raises(SettingsNotRead, match=r"another version of cloudrun-sidecar, restart it: ") as ended:
        read_settings(command_line("sends_half"))
    assert ended.value.exit_code == 1


@pytest.mark.parametrize("executable", ["/nonexistent/python", "", None])
def test_the_error_names_an_interpreter_that_cannot_be_started(
    executable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(
        SettingsNotRead, match=f"^cannot start {executable or 'Python'} to read the settings: "
    ) as ended:
        read_settings(command_line("reports"))
    assert ended.value.exit_code == 1


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_where_no_process_can_be_started_the_limits_are_named(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", limited)
    with pytest.raises(SettingsNotRead, match=rf"{os.strerror(number)}; raise the limit of processes") as ended:
        read_settings(command_line("reports"))
    assert ended.value.exit_code == 1

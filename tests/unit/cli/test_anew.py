from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import proxy.cli
from proxy.cli.anew import handed_over, serve_anew

VARIABLE = "_CLOUDRUN_SIDECAR_SETTINGS_FD"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings that were served in this process: the composition root is replaced, and ends at once with 7."""
    seen: list[str] = []

    def serve(settings: str) -> int:
        seen.append(settings)
        return 7

    root(monkeypatch, serve)
    return seen


def root(monkeypatch: pytest.MonkeyPatch, serve: Callable[[str], int]) -> None:
    module = ModuleType("proxy.supervisor.serve")
    module.serve = serve  # type: ignore[attr-defined] # a module made by hand
    monkeypatch.setitem(sys.modules, "proxy.supervisor.serve", module)


def hand_over(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave settings as a process leaves them that begins anew."""
    Path("settings").write_text(settings, encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(os.open("settings", os.O_RDONLY)))


def descriptors() -> set[str]:
    """What is open in this process; its very listing is not any more."""
    return {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}


def test_a_process_that_begins_for_the_first_time_has_been_handed_nothing() -> None:
    assert handed_over() is None


def test_what_is_handed_over_is_taken_once_and_nothing_of_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over('{"é": 1}', monkeypatch)
    assert handed_over() == '{"é": 1}'
    assert VARIABLE not in os.environ
    assert not any(name.endswith("/settings") for name in descriptors())
    assert handed_over() is None


def test_a_process_without_settings_does_what_its_command_line_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cloudrun-sidecar", "--version"])
    with pytest.raises(SystemExit) as ended:
        proxy.cli.main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"cloudrun-sidecar {proxy.__version__}\n")


def test_a_process_with_settings_serves_them_without_reading_its_command_line(
    monkeypatch: pytest.MonkeyPatch, served: list[str]
) -> None:
    hand_over("{}", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["cloudrun-sidecar", "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        proxy.cli.main()
    assert (ended.value.code, served) == (7, ["{}"])


def test_an_interrupt_before_it_serves_ends_it_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> int:
        raise KeyboardInterrupt

    root(monkeypatch, interrupted)
    hand_over("{}", monkeypatch)
    with pytest.raises(SystemExit) as ended:
        proxy.cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Aborted!\n"


def test_where_nothing_can_be_begun_anew_it_serves_as_it_is(monkeypatch: pytest.MonkeyPatch, served: list[str]) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert serve_anew("{}") == 7
    assert served == ["{}"]
    assert not any("memfd:settings" in name for name in descriptors())


def test_where_there_is_no_memfd_it_serves_as_it_is(monkeypatch: pytest.MonkeyPatch, served: list[str]) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert serve_anew("{}") == 7
    assert served == ["{}"]


BEGINS = f"""
import os, sys, types
from proxy.cli import main
again = {VARIABLE!r} in os.environ
def serve(settings):
    sys.stderr.write("a line\\n")
    with open("seen", "a") as seen:
        print(again, *(os.path.realpath(f"/proc/self/fd/{{number}}") for number in range(3)), file=seen)
    return 7
sys.modules["proxy.supervisor.serve"] = types.ModuleType("proxy.sidecar")
sys.modules["proxy.supervisor.serve"].serve = serve
main()
"""
"""A program that writes, instead of serving, whether it was begun anew, and what its first three descriptors are."""


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&- 2>&-", "2>&-"])
def test_what_is_opened_takes_the_place_of_no_standard_stream(closed: str) -> None:
    """A socket with the number of stderr would get the lines of the log."""
    Path("program").write_text(BEGINS)
    argv = ["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "program", "serve", "--upstream", "https://a"]
    ran = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    assert ran.returncode == 7
    assert Path("seen").read_text() == "True /dev/null /dev/null /dev/null\n"


@pytest.mark.parametrize("dash", [["-"], ["/dev/stdin"]])
def test_a_program_that_came_through_a_pipe_is_not_begun_anew(dash: list[str]) -> None:
    argv = [sys.executable, *dash, "serve", "--upstream", "https://a"]
    ran = subprocess.run(argv, input=BEGINS, capture_output=True, check=False, text=True)
    assert (ran.returncode, ran.stderr) == (7, "a line\n")
    assert Path("seen").read_text().startswith("False ")

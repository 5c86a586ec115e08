"""The thread that reads the settings again: when it does, what it delivers, and how it ends.

The reader is that of `serve`, in a process of its own.
"""

from __future__ import annotations

import errno
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import structlog

from proxy.settings.plain import PlainSettings
from proxy.settings.reading import CommandLine, Reading, read_settings
from proxy.settings.reloading import Refused, Reloader

WAIT_SECONDS = 60.0

Delivered = tuple[PlainSettings | Refused, bool]


def routes(*names: str) -> str:
    return "".join(f'[routes.{name}]\nurl = "https://{name}.run.app"\n' for name in names)


def save(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


class Deliveries:
    """What was delivered, in order."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Delivered] = queue.Queue()

    def __call__(self, outcome: PlainSettings | Refused, requested: bool) -> None:
        self._queue.put((outcome, requested))

    def next(self) -> Delivered:
        return self._queue.get(timeout=WAIT_SECONDS)

    def names(self) -> list[str]:
        """Return the names of the routes of the next settings."""
        outcome, _ = self.next()
        assert isinstance(outcome, PlainSettings), outcome
        return [route.name for route in outcome.routes]

    def problems(self) -> tuple[str, ...]:
        outcome, _ = self.next()
        assert isinstance(outcome, Refused)
        return outcome.problems

    def empty(self) -> bool:
        return self._queue.empty()


def command_line(*arguments: str, reader: str = "proxy.cli.settings_process") -> CommandLine:
    return CommandLine(
        reader=reader,
        program="cloudrun-sidecar",
        package=None,
        arguments=("serve", *arguments),
        environment={"PATH": os.environ["PATH"]},
        import_path=tuple(sys.path),
    )


@contextmanager
def reloader(
    *arguments: str,
    before_start: Callable[[], None] = lambda: None,
    begin: Callable[[], None] = lambda: None,
    reader: str = "proxy.cli.settings_process",
) -> Iterator[tuple[Reloader, Deliveries]]:
    """Read the settings, watch their file, and see that nothing is left behind at the end."""
    given = command_line(*arguments, reader=reader)
    settings = read_settings(given)
    descriptors = len(os.listdir("/proc/self/fd"))
    delivered = Deliveries()
    running = Reloader(given, settings, delivered, begin=begin)
    before_start()
    running.start()
    try:
        yield running, delivered
    finally:
        running.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "settings"]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_change_is_read_and_carries_the_state_of_the_file_that_was_read(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (_, delivered):
        save(path, routes("a", "b"))
        outcome, requested = delivered.next()
        assert isinstance(outcome, PlainSettings)
        assert not requested
        assert outcome.config == path
        assert outcome.config_state[1] == path.stat().st_ino
        assert [route.name for route in outcome.routes] == ["a", "b"]


def test_a_change_between_the_first_reading_and_the_start_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path), before_start=lambda: save(path, routes("b"))) as (_, delivered):
        assert delivered.names() == ["b"]


def test_an_internal_error_does_not_end_the_watching(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    fails = [ZeroDivisionError]

    def fail_once() -> None:
        if fails:
            raise fails.pop()

    with structlog.testing.capture_logs() as lines, reloader("--config", str(path), begin=fail_once) as (_, delivered):
        save(path, routes("b"))
        assert delivered.names() == ["b"]
    assert [line["log_level"] for line in lines] == ["error"]


def test_changes_in_quick_succession_are_read_once_with_the_last_content(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (running, delivered):
        for number in range(20):
            save(path, routes(f"r{number}"))
        assert delivered.names() == ["r19"]
        running.request()
        assert delivered.next()[1]
        assert delivered.empty()


def test_all_problems_of_a_change_are_reported_and_the_next_valid_change_is_read(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (_, delivered):
        save(path, 'workers = "x"\nspeed = 1\n' + routes("a"))
        assert delivered.problems() == (
            f"{path}: workers: must be a whole number, not 'x' (processes, default 1)",
            f"{path}: speed: is not a setting",
        )
        save(path, "[routes")
        [problem] = delivered.problems()
        assert problem.startswith(f"{path}: is not valid TOML: ")
        save(path, routes("b"))
        assert delivered.names() == ["b"]


KILLED_ONCE = """
import os, signal
from pathlib import Path
from proxy.cli import settings_process

def main(descriptor):
    if Path(__file__).with_name("kill").exists():
        Path(__file__).with_name("kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    settings_process.main(descriptor)
"""


def test_settings_whose_reading_was_killed_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.settings.reloading._AGAIN_SECONDS", 0.1)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "killed_once.py").write_text(KILLED_ONCE)
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path), reader="killed_once") as (_, delivered):
        (tmp_path / "kill").touch()
        save(path, routes("a", "b"))
        (problem,) = delivered.problems()
        assert problem.startswith("the process that reads the settings was ended by SIGKILL; ")
        assert delivered.names() == ["a", "b"]
        save(path, "broken")
        assert len(delivered.problems()) == 1
        save(path, routes("c"))
        assert delivered.names() == ["c"]


def test_a_program_that_was_removed_is_named_and_the_settings_are_read_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.settings.reloading._AGAIN_SECONDS", 0.1)
    monkeypatch.syspath_prepend(tmp_path)
    (installed := tmp_path / "installed.py").write_text("from proxy.cli.settings_process import main")
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path), reader="installed") as (_, delivered):
        installed.rename(tmp_path / "removed")
        save(path, routes("b"))
        assert delivered.problems() == (
            "the process that reads the settings failed: ModuleNotFoundError: No module named 'installed'; if another "
            "version of cloudrun-sidecar was installed meanwhile, restart it",
        )
        (tmp_path / "removed").rename(installed)
        while isinstance(read := delivered.next()[0], Refused):  # it may have been read again before
            pass
        assert [route.name for route in read.routes] == ["b"]


def test_settings_that_could_not_be_read_for_want_of_a_descriptor_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.settings.reloading._AGAIN_SECONDS", 0.1)
    attempts = count()

    def reading(*given: Any, **options: Any) -> Reading:
        if next(attempts) == 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return Reading(*given, **options)

    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (_, delivered):
        monkeypatch.setattr("proxy.settings.reloading.Reading", reading)
        save(path, routes("a", "b"))
        assert delivered.problems() == ("the settings cannot be read: Too many open files",)
        assert delivered.names() == ["a", "b"]


def test_a_file_that_is_missing_for_a_moment_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (_, delivered):
        path.rename(tmp_path / "away")
        (tmp_path / "away").rename(path)
        path.unlink()
        save(path, routes("b"))
        assert delivered.names() == ["b"]


def test_a_file_that_stays_away_is_reported_once_and_read_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.settings.reloading._MISSING_SECONDS", 0.5)
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (running, delivered):
        path.unlink()
        assert delivered.problems() == (f"{path}: cannot be read: No such file or directory",)
        running.request()
        [problem] = delivered.problems()
        assert problem == f"{path}: there is no such file; name one that exists"
        save(path, routes("b"))
        assert delivered.names() == ["b"]


def test_a_file_that_is_polled_is_read_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("proxy.settings.watching._new_inotify", none)
    monkeypatch.setattr("proxy.settings.watching.POLL_SECONDS", 0.1)
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (_, delivered):
        save(path, routes("b"))
        assert delivered.names() == ["b"]


def test_a_relative_path_and_the_default_file_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config" / "routes.toml"
    with reloader("--upstream", "https://x.run.app") as (running, delivered):
        path.parent.mkdir()
        path.write_text(routes("a"))
        running.request()
        assert delivered.names() == ["a", ""]
        save(Path("config/routes.toml"), routes("b"))
        assert delivered.names() == ["b", ""]


def test_the_parent_of_a_linked_folder_is_watched_where_the_link_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/sub")
    (tmp_path / "real" / "routes.toml").write_text(routes("a"))
    with reloader("--config", "link/../routes.toml") as (running, delivered):
        save(tmp_path / "real" / "routes.toml", routes("b"))
        assert delivered.names() == ["b"]
        running.request()
        assert delivered.names() == ["b"]


def test_a_default_file_that_is_gone_when_it_is_requested_removes_no_routes_and_is_read_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config" / "routes.toml"
    path.parent.mkdir()
    path.write_text(routes("a"))
    with reloader("--route", "flag=https://flag.run.app") as (running, delivered):
        path.unlink()
        running.request()
        assert delivered.problems() == (f"{path}: there is no such file; put it back, or restart without it",)
        save(path, routes("a", "b"))
        assert delivered.names() == ["a", "b", "flag"]


def test_anything_but_a_regular_file_is_not_reread(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writing = threading.Thread(target=path.write_text, args=(routes("a"),))
    writing.start()
    with reloader("--config", str(path)) as (running, delivered):
        writing.join()
        running.request()
        what = "is not a regular file, and cannot be read a second time; put a file in its place, or restart"
        assert delivered.problems() == (f"{path}: {what}",)


def test_a_directory_in_the_place_of_the_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (_, delivered):
        (tmp_path / "folder").mkdir()
        path.unlink()
        (tmp_path / "folder").rename(path)
        assert delivered.problems() == (f"{path}: is a directory now; put a file in its place, or restart",)


def test_closing_ends_a_running_read(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(routes("a"))
    with reloader("--config", str(path)) as (running, delivered):
        running.request()
    assert delivered.empty() or delivered.next()[1]


def test_a_reloader_that_was_never_started_can_be_closed() -> None:
    given = command_line("--upstream", "https://x.run.app")
    descriptors = len(os.listdir("/proc/self/fd"))
    running = Reloader(given, read_settings(given), Deliveries())
    running.close()
    running.request()
    assert len(os.listdir("/proc/self/fd")) == descriptors

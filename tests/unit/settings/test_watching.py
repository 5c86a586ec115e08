"""Every way of saving a settings file is noticed, and nothing else is."""

from __future__ import annotations

import itertools
import os
import select
import shutil
from collections.abc import Callable
from pathlib import Path

import inotify_simple
import pytest

from proxy.settings.file_state import state_of_path
from proxy.settings.watching import POLL_SECONDS, WatchedFile, can_be_watched

numbers = itertools.count()


def noticed(file: WatchedFile) -> bool:
    """Return whether there is an event; the kernel has it in the queue before the change returns."""
    descriptor = file.fileno()
    assert descriptor is not None
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0)) and file.read_events()


def spare(path: Path) -> Path:
    """Return a new name beside this one."""
    return path.with_name(f"{path.name}.{next(numbers)}")


def in_place(path: Path) -> None:
    path.write_text("new")


def renamed(path: Path) -> None:
    new = path.with_name("4913~")
    new.write_text("new")
    new.rename(path)


def moved_away_and_made_again(path: Path) -> None:
    path.rename(spare(path))
    path.write_text("new")


def linked(path: Path) -> None:
    new = spare(path)
    new.write_text("new")
    path.unlink()
    path.symlink_to(new)


def folder_replaced(path: Path) -> None:
    other = spare(path.parent)
    shutil.copytree(path.parent, other)
    path.parent.rename(spare(path.parent))
    other.rename(path.parent)


def folder_above_replaced(path: Path) -> None:
    folder_replaced(path.parent)


def folder_removed_and_made_again(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    path.write_text("new")


def permissions(path: Path) -> None:
    path.chmod(path.stat().st_mode ^ 0o040)


WAYS = [
    in_place,
    renamed,
    moved_away_and_made_again,
    linked,
    folder_replaced,
    folder_above_replaced,
    folder_removed_and_made_again,
    permissions,
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "above" / "etc" / "routes.toml"
    path.parent.mkdir(parents=True)
    path.write_text("old")
    return path


@pytest.mark.parametrize("change", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_saving_is_noticed_repeatedly(change: Callable[[Path], None], path: Path) -> None:
    with WatchedFile(path) as file:
        for _ in range(3):
            assert not noticed(file)
            state = state_of_path(path)
            change(path)
            assert noticed(file)
            file.watch()
            while noticed(file):
                file.watch()
            assert state_of_path(path) != state


def test_a_changed_link_within_the_path_is_noticed(tmp_path: Path) -> None:
    """A ConfigMap volume: `routes.toml` leads to `..data/routes.toml`, and `..data` to a folder with a date."""
    for number in (1, 2, 3):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "routes.toml").write_text(str(number))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "routes.toml").symlink_to("..data/routes.toml")
    with WatchedFile(tmp_path / "routes.toml") as file:
        for number in (2, 3):
            (tmp_path / "..data_tmp").symlink_to(f"..{number}")
            (tmp_path / "..data_tmp").rename(tmp_path / "..data")
            assert noticed(file)
            file.watch()
            noticed(file)
            (tmp_path / f"..{number}" / "routes.toml").write_text("changed in place")
            assert noticed(file)
            file.watch()
            noticed(file)


def test_links_across_folders_and_absolute_links_are_followed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "c" / "routes.toml").write_text("old")
    (tmp_path / "b" / "link").symlink_to("../c/./routes.toml")
    (tmp_path / "a" / "routes.toml").symlink_to(tmp_path / "b" / "link")
    with WatchedFile(tmp_path / "a" / "routes.toml") as file:
        in_place(tmp_path / "c" / "routes.toml")
        assert noticed(file)
        (tmp_path / "b" / "link").unlink()
        assert noticed(file)
        file.watch()
        noticed(file)
        (tmp_path / "b" / "link").symlink_to("../c/routes.toml")
        assert noticed(file)


def test_circular_links_are_no_endless_loop(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with WatchedFile(tmp_path / "a") as file:
        (tmp_path / "b").unlink()
        assert noticed(file)


def test_other_files_and_reads_are_not_reported(path: Path) -> None:
    with WatchedFile(path) as file:
        in_place(path.with_name("other"))
        path.with_name("other").unlink()
        path.read_text()
        assert not noticed(file)


def test_a_missing_file_is_noticed_when_it_is_made_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "routes.toml"
    with WatchedFile(path) as file:
        for made in (path.parent.parent.mkdir, path.parent.mkdir, path.touch):
            made()
            assert noticed(file)
            file.watch()
            noticed(file)


def test_unknown_file_systems_are_polled_and_local_ones_are_not(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounts = tmp_path / "mounts"
    where = str(path.parent).replace("e", "\\145")
    monkeypatch.setattr("proxy.settings.watching._MOUNTS", str(mounts))
    for kind, seconds in {"ext4": None, "nfs4": POLL_SECONDS, "virtiofs": POLL_SECONDS}.items():
        mounts.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {where} rw shared:1 - {kind} x rw\n")
        with WatchedFile(path) as file:
            assert file.poll_seconds == seconds


def test_a_folder_that_may_not_be_read_is_polled_until_it_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("1 0 0:1 / / rw - ext4 x rw\n")
    monkeypatch.setattr("proxy.settings.watching._MOUNTS", str(mounts))
    closed: list[str] = []

    class ForOneUser(inotify_simple.INotify):  # type: ignore[misc]
        """Obeys permissions, also for root."""

        def add_watch(self, place: str, mask: int) -> int:
            if place in closed:
                raise PermissionError(13, os.strerror(13), place)
            return int(super().add_watch(place, mask))

    monkeypatch.setattr("proxy.settings.watching._new_inotify", lambda: ForOneUser(nonblocking=True))
    with WatchedFile(path) as file:
        assert file.poll_seconds is None
        closed.append(str(path.parent))
        path.parent.chmod(0o700)
        assert noticed(file)
        file.watch()
        assert file.poll_seconds == POLL_SECONDS
        closed.clear()
        file.watch()
        assert file.poll_seconds is None
        renamed(path)
        assert noticed(file)


def test_without_inotify_the_file_is_polled(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("proxy.settings.watching._new_inotify", none)
    with WatchedFile(path) as file:
        assert (file.fileno(), file.poll_seconds) == (None, POLL_SECONDS)
        file.watch()
    said = capsys.readouterr()
    assert "Too many open files" in said.out + said.err


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/3", "/proc/self/fd/0", "/proc/1/root/etc/routes.toml"])
def test_inherited_descriptors_cannot_be_watched(name: str) -> None:
    assert not can_be_watched(Path(name))
    assert can_be_watched(Path("/etc/routes.toml"))
    assert can_be_watched(Path("/dev/shm/routes.toml"))  # a folder in memory, for files as any other

"""Notices that the settings file may have changed, in whatever way it is saved.

inotify is told to watch what an open of the path goes through: each folder with a symbolic link of the chain or the
file in it, these folders themselves (they may be replaced), and the file (it may be mounted alone). So an editor that
writes in place, one that renames a new file over the old one, and a ConfigMap volume, which swaps a link in the middle
of the chain, are noticed alike. Whether the content is another one is not known from events: `file_state` tells.

Where there is no inotify, where a folder may not be read, and on file systems whose changes come from other machines
without an event (NFS, mounts of virtual machines), the caller must look every `POLL_SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import structlog

__all__ = ["POLL_SECONDS", "WatchedFile", "can_be_watched"]

_log: Final = structlog.get_logger("settings")

POLL_SECONDS: Final = 5.0
"""How often to look at a file whose file system may not report changes."""

_MOST_LINKS: Final = 40  # as the kernel
_MOUNTS: Final = "/proc/self/mountinfo"
_SPECIAL: Final = ("/dev/fd", "/dev/stdin", "/proc")

_LOCAL_FILE_SYSTEMS: Final = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "squashfs", "tmpfs", "xfs", "zfs")
)
"""File systems that change only by this machine's kernel, which reports it."""


def can_be_watched(path: Path) -> bool:
    """Return False for `/dev/stdin`, `/dev/fd/3` and the like: they are names of what a process was started with."""
    return not any(path.is_relative_to(special) for special in _SPECIAL)


class WatchedFile:
    """A file that is watched, as a context manager. `path` must be absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.poll_seconds: float | None = None
        """How often to look at the file even without an event; None if events suffice."""
        self._inotify: Any = None
        self._watches: dict[int, frozenset[str] | None] = {}
        """The names whose events count, by watch; None if all count."""

    def __enter__(self) -> WatchedFile:
        try:
            self._inotify = _new_inotify()
        except (ImportError, AttributeError, OSError) as exc:
            self._watch_by_polling(exc)
        self.watch()
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def fileno(self) -> int | None:
        """Return the descriptor that is readable when there are events; None if there is no inotify."""
        return None if self._inotify is None else self._inotify.fileno()

    def watch(self) -> None:
        """Watch what the path goes through now; call it after each event, and look at the file afterwards."""
        if self._inotify is None:
            return
        from inotify_simple import flags  # only where a file is watched

        itself = flags.DELETE_SELF | flags.MOVE_SELF
        content = itself | flags.MODIFY | flags.ATTRIB | flags.CLOSE_WRITE
        entries = content | flags.MOVED_FROM | flags.MOVED_TO | flags.CREATE | flags.DELETE
        wanted, end = _on_the_way(self.path)
        masks: dict[str, tuple[int, frozenset[str] | None]] = {
            folder: (entries, frozenset(names)) if names else (itself, None) for folder, names in wanted.items()
        }
        masks.setdefault(end, (content, None))
        watches: dict[int, frozenset[str] | None] = {}
        closed = False
        for place, (mask, names) in masks.items():
            try:
                watch = self._inotify.add_watch(place, mask)
            except OSError as exc:
                # It may be missing by now, or closed to us. At the limit of watches nothing more can be watched.
                if isinstance(exc, PermissionError):
                    closed = True
                    continue
                if not os.path.exists(place):
                    continue
                self._watch_by_polling(exc)
                return
            # Two names of one folder share a watch.
            before = watches.get(watch, frozenset())
            watches[watch] = None if names is None or before is None else before | names
        for watch in self._watches.keys() - watches.keys():
            with contextlib.suppress(OSError):  # gone with its folder
                self._inotify.rm_watch(watch)
        self._watches = watches
        # That a folder is opened again, or what changes in one that can only be passed through, comes without an event.
        self.poll_seconds = None if _file_system(end) in _LOCAL_FILE_SYSTEMS and not closed else POLL_SECONDS

    def read_events(self) -> bool:
        """Read the events there are; return whether one is about the file or the way to it."""
        found = False
        for event in self._inotify.read(timeout=0):
            if event.wd < 0:  # events were lost
                found = True
            elif event.wd in self._watches:
                names = self._watches[event.wd]
                found |= names is None or not event.name or event.name in names
        return found

    def _watch_by_polling(self, reason: Exception) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self.poll_seconds = POLL_SECONDS
        why = reason.strerror if isinstance(reason, OSError) else "there is no inotify"
        _log.warning("settings file is polled, not watched", file=str(self.path), seconds=POLL_SECONDS, reason=why)


def _new_inotify() -> Any:
    if sys.platform != "linux":
        raise ImportError("inotify")
    # Imported only where a file is watched.
    from inotify_simple import INotify

    return INotify(nonblocking=True)


def _on_the_way(path: Path) -> tuple[dict[str, set[str]], str]:
    """Return the folders on the way to a file, each with the names in it that matter, and where the way ends.

    The names are those of symbolic links, of the file, and of what is missing. A folder without names matters itself:
    it may be moved. The way ends at the file, or at the last folder that exists.
    """
    folders: dict[str, set[str]] = {}
    rest = list(reversed(path.parts[1:]))
    here = "/"
    links = 0
    while rest:
        name = rest.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        names = folders.setdefault(here, set())
        there = os.path.join(here, name)
        target = None
        with contextlib.suppress(OSError):
            target = os.readlink(there)
        if target is not None and links < _MOST_LINKS:
            links += 1
            names.add(name)
            rest += reversed([part for part in Path(target).parts if part != "/"])
            here = "/" if target.startswith("/") else here
            continue
        if not rest or not os.path.isdir(there):
            names.add(name)
            return folders, there if os.path.exists(there) else here
        here = there
    return folders, here


def _file_system(place: str) -> str | None:
    """Return the type of the file system that a path is on; None if it is not known."""
    best, found = "", None
    with contextlib.suppress(OSError), open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
            if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, found = point, after.split()[0]
    return found

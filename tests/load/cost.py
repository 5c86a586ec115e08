"""What a process costs, from outside: CPU time to the nanosecond, resident memory."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Final

__all__ = ["Process", "ProcessGone", "busy_seconds"]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class ProcessGone(Exception):
    """There is no such process any more."""


class Process:
    """A process and those that it had started when this object was made."""

    def __init__(self, pid: int) -> None:
        self.pids = tuple(_tree(pid))
        self._clocks = tuple(map(_clock, self.pids))

    def cpu_seconds(self) -> float:
        """Return user and system time of all threads so far, ended ones too; raises ProcessGone.

        It is the sum that /proc/PID/stat gives as utime + stime, but not rounded to hundredths of a second.
        """
        try:
            return sum(map(time.clock_gettime, self._clocks))
        except OSError as exc:
            raise ProcessGone from exc

    def rss_octets(self) -> int:
        """Return the resident memory (VmRSS), pages of files included; raises ProcessGone."""
        return sum(_status(pid, "VmRSS") for pid in self.pids)

    def threads(self) -> int:
        """Return how many threads there are; raises ProcessGone."""
        try:
            return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self.pids)
        except OSError as exc:
            raise ProcessGone from exc

    def open_files(self) -> int:
        """Return how many file descriptors are open; raises ProcessGone."""
        try:
            return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)
        except OSError as exc:
            raise ProcessGone from exc


def busy_seconds(processor: int) -> float:
    """Return for how long a processor has not been idle since boot, in steps of a hundredth of a second."""
    line = next(one for one in Path("/proc/stat").read_text().splitlines() if one.startswith(f"cpu{processor} "))
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _clock(pid: int) -> int:
    clock = ctypes.c_int()
    if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        raise ProcessGone
    return clock.value


def _status(pid: int, name: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError as exc:
        raise ProcessGone from exc
    raise ProcessGone  # a zombie has no memory left


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue  # it ended in between
        children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [pid]
    for parent in found:  # grows as it is walked
        found += children.get(parent, [])
    return found

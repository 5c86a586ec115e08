"""The values of `PROCESS_FAMILIES`: metrics that Prometheus' clients have in common, read from Linux' /proc."""

from __future__ import annotations

import os
import resource
from functools import cache
from typing import Final

__all__ = ["process_metrics"]

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_OCTETS: Final = os.sysconf("SC_PAGE_SIZE")


def process_metrics() -> dict[str, float]:
    """Return the metrics of this process by name; those that cannot be read are left out. It takes long."""
    return {**_from_stat(), **_descriptors()}


def _from_stat() -> dict[str, float]:
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            # The name of the program may contain anything, so fields are counted from the third one (proc_pid_stat(5)).
            fields = file.read().rpartition(")")[2].split()
        user, system, started, virtual, resident = (int(fields[number - 3]) for number in (14, 15, 22, 23, 24))
        booted_at = _booted_at()
    except (OSError, ValueError, IndexError):
        return {}
    return {
        "process_cpu_seconds_total": (user + system) / _TICKS_A_SECOND,
        "process_virtual_memory_bytes": virtual,
        "process_resident_memory_bytes": resident * _PAGE_OCTETS,
        "process_start_time_seconds": booted_at + started / _TICKS_A_SECOND,
    }


def _descriptors() -> dict[str, float]:
    try:
        count = len(os.listdir("/proc/self/fd"))
    except OSError:
        return {}
    return {"process_open_fds": count, "process_max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}


@cache
def _booted_at() -> int:
    with open("/proc/stat", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("btime "))

"""When a sidecar that was soaked has more than a new one."""

from __future__ import annotations

from tests.soak.run import growth
from tests.soak.sidecars import Resources

MIB = 1 << 20
FRESH = Resources(octets=100 * MIB, files=50, threads=10)


def test_what_differs_between_two_new_sidecars_is_no_growth() -> None:
    assert growth(Resources(octets=117 * MIB, files=57, threads=12), FRESH) == []


def test_each_kind_of_growth_is_named() -> None:
    memory, files, threads = growth(Resources(octets=120 * MIB, files=60, threads=14), FRESH)
    assert memory.startswith("125,829,120 octets of memory, and a new sidecar needs at most ")
    assert files == "60 open files, and a new sidecar needs at most 58"
    assert threads == "14 threads, and a new sidecar needs at most 13"

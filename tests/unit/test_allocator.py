"""The C library's allocator, in processes of their own: what it is asked for holds as long as a process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MIB = 1 << 20

HOLES = """
import re, sys
from proxy.allocator import return_large_blocks

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

if sys.argv[1] == "asked":
    return_large_blocks()
before = resident()
del [bytes(300 << 10) for _ in range(50)][:]  # such blocks are freed: glibc keeps those that come then
blocks = []
for _ in range(200):
    blocks.append(bytes(300 << 10))
    blocks.append(bytes(2_000))  # stays between two of them
del blocks[::2]
print(resident() - before)
"""


def grown(how: str) -> int:
    """Return how much larger a process is after large blocks with small ones between them were freed."""
    return int(subprocess.run([sys.executable, "-c", HOLES, how], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this")
def test_large_blocks_are_returned_to_the_system_when_they_are_freed() -> None:
    assert grown("asked") < 5 * MIB
    assert grown("not asked") > 20 * MIB, "this test would not see it"

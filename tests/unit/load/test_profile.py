"""What callgrind wrote is added up by layer."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from tests.load.places import compile_library, python_build
from tests.load.profile import SLOW_CLOCK, layer, parse
from tests.support.processes import program

WRITTEN = """\
version: 1
events: Ir

ob=(1) /usr/lib/x86_64-linux-gnu/libnghttp2.so.14.24.1
fl=(1) session.c
fn=(1) receive
10 100
+3 20
cob=(2) /opt/proxy/http2/nghttp2/engine.cpython-311-x86_64-linux-gnu.so
cfn=(2) on_data
calls=4 1
* 5000

ob=(2)
fn=(2)
7 30
-2 3

ob=(1)
fn=(3) send
* 1
"""


def test_the_cost_of_a_function_excludes_its_calls() -> None:
    assert parse(WRITTEN) == {
        "/usr/lib/x86_64-linux-gnu/libnghttp2.so.14.24.1": 121,
        "/opt/proxy/http2/nghttp2/engine.cpython-311-x86_64-linux-gnu.so": 33,
    }


@pytest.mark.parametrize(
    ("object_file", "expected"),
    [
        ("/usr/lib/x86_64-linux-gnu/libnghttp2.so.14.24.1", "libnghttp2"),
        ("/opt/proxy/http2/nghttp2/engine.cpython-311-x86_64-linux-gnu.so", "the sidecar's own modules"),
        ("/usr/lib/python3.11/lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so", "TLS"),
        ("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", "TLS"),
        ("/opt/site-packages/uvloop/loop.cpython-311-x86_64-linux-gnu.so", "uvloop"),
        ("/usr/bin/python3.11", "Python"),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "C library"),
        ("/usr/sbin/nghttpx", "other"),
    ],
)
def test_each_object_file_belongs_to_a_layer(object_file: str, expected: str) -> None:
    assert layer(object_file) == expected


def test_the_python_build_is_named_with_its_optimisation() -> None:
    build = python_build()
    assert build.startswith(f"Python {platform.python_version()}, {platform.python_compiler()}, ")
    assert " -O" in build


CLOCKS = """
import select, time
began, at = time.perf_counter(), time.time()
select.select([], [], [], 0.2)
print(f"{time.perf_counter() - began:.6f} {time.time() - at:.6f}")
"""


@pytest.mark.asyncio
async def test_what_is_profiled_has_a_clock_that_goes_as_slow_as_callgrind(tmp_path: Path) -> None:
    clock = await compile_library(SLOW_CLOCK, tmp_path)
    async with program("clocks", [sys.executable, "-c", CLOCKS], env={"LD_PRELOAD": str(clock)}) as running:
        found = await running.line(r"^([0-9.]+) ([0-9.]+)$")
    seconds, of_the_wall = map(float, found.groups())
    assert of_the_wall >= 0.2
    assert of_the_wall / 100 < seconds < of_the_wall / 25

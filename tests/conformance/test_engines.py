"""Which engines the other modules test."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig

from tests.support.peers.engines import ENGINES

INCLUDES = b"#include <Python.h>\n#include <nghttp2/nghttp2.h>\n"


def can_compile() -> bool:
    """Whether there is a C compiler, and the headers of Python and of libnghttp2 where it looks for them."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = [f"-I{sysconfig.get_path('include')}", "-x", "c", "-fsyntax-only", "-"]
    try:
        return subprocess.run([*compiler, *flags], input=INCLUDES, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_the_compiled_engine_is_tested_wherever_it_can_be_compiled() -> None:
    """An engine that was not built, or is of another Python, would leave the suite with nothing to say about it."""
    names = {make.name for make in ENGINES}
    assert names == ({"h2", "nghttp2"} if can_compile() else names | {"h2"})

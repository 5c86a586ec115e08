from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.supervisor.importing import lean_imports

_WORKER = """
import sys
from proxy.supervisor.importing import lean_imports
with lean_imports():
    import proxy.worker
{then}
"""


def imported(then: str) -> str:
    """What a process prints that has imported a worker."""
    argv = [sys.executable, "-c", _WORKER.format(then=then)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_aiohttp_keeps_no_certification_authorities() -> None:
    printed = imported("from aiohttp import connector; print(connector._SSL_CONTEXT_VERIFIED.get_ca_certs())")
    assert printed == "[]"


def test_the_library_of_cxx_is_not_loaded() -> None:
    assert imported("print('stdc++' in open('/proc/self/maps').read())") == "False"


def test_the_supervisor_has_not_imported_what_it_is_too_late_for_then() -> None:
    code = "import sys, proxy.supervisor.serve; print(sys.modules.keys() & {'aiohttp', 'frozenlist'})"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "set()"


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    before = dict(os.environ)
    with lean_imports():
        assert os.environ["SSL_CERT_FILE"] == os.environ["SSL_CERT_DIR"] == os.devnull
    assert dict(os.environ) == before

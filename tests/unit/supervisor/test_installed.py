"""Which version of the package is installed while another one may run."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy import __version__
from proxy.downstream.config import ListenerConfig
from proxy.supervisor import installed
from proxy.supervisor.installed import other_version
from proxy.supervisor.workers import run_workers
from tests.support.signals import signals_restored
from tests.unit.supervisor import crew


def test_the_version_that_runs_is_no_other() -> None:
    assert other_version() == ""


@pytest.mark.parametrize(
    ("content", "version"), [(b'__version__ = "0.0.7"\n', "0.0.7"), (b"\xff", "unknown"), (b"", "unknown")]
)
def test_another_version_is_read_from_the_package(
    content: bytes, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_FILE", tmp_path / "__init__.py")
    assert other_version() == "unknown"
    (tmp_path / "__init__.py").write_bytes(content)
    assert other_version() == version


def test_the_start_of_a_worker_of_another_version_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").write_text('"""Another one."""\n\n__version__ = "999.1"\n')
    monkeypatch.setattr(installed, "_FILE", tmp_path / "__init__.py")
    with signals_restored(), capture_logs() as lines:
        config = ListenerConfig((f"unix:{tmp_path}/s",), 1, str(tmp_path))
        assert run_workers(config, crew.told, drain_seconds=30) == 0
    said = [(line["running"], line["installed"], line["remedy"]) for line in lines if "installed" in line]
    assert said == [(__version__, "999.1", "restart the sidecar")] * 2

"""Workers that take the place of others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.downstream.config import ListenerConfig
from proxy.supervisor.replacing import Replacing
from proxy.supervisor.workers import run_workers
from tests.support.signals import signals_restored
from tests.unit.supervisor import crew


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    with signals_restored():
        yield


def test_one_more_worker_starts_while_all_others_drain_that_were_told_to(tmp_path: Path) -> None:
    with capture_logs() as lines:
        config = ListenerConfig((f"unix:{tmp_path}/s",), 2, str(tmp_path))
        assert run_workers(config, crew.told_together, drain_seconds=30) == 0
    assert len([line for line in lines if line["event"] == "worker was told to end: starting another"]) == 1


def test_a_replacement_that_fails_at_its_start_does_not_spoil_an_orderly_end(tmp_path: Path) -> None:
    with capture_logs() as lines:
        config = ListenerConfig((f"unix:{tmp_path}/s",), 1, str(tmp_path))
        assert run_workers(config, crew.late, drain_seconds=30) == 0
    codes = [(line["event"], line["exit_code"]) for line in lines if "exit_code" in line]
    assert codes == [("worker died: starting another", 3), ("worker failed while draining", 4)]


def _told(pid: int) -> Any:
    """Return a worker that was told to end, and has done so once its `process.exitcode` is asked."""
    channel = SimpleNamespace(draining=True, gone=False, ready=True)
    process = SimpleNamespace(exitcode=0)
    return SimpleNamespace(pid=pid, channel=channel, process=process, replaced=False, exit_reason=dict)


def test_each_worker_is_replaced_once_when_all_are_told_to_end_again_and_again() -> None:
    workers = [_told(1), _told(2)]
    replacing = Replacing(workers)
    started = 0
    with capture_logs() as lines:
        for pid in (3, 4):
            replacing.check(0.0)
            started += replacing.starts.take_due(math.inf)
            workers.append(_told(pid))
        for worker in list(workers[:3]):
            workers.remove(worker)
            replacing.replace(worker)
            started += replacing.starts.take_due(math.inf)
    assert [line["pid"] for line in lines] == [1, 2, 3]
    assert started == 3

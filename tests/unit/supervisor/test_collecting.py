"""Collecting the states of workers: over real channels, with workers that answer, are late or have ended."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from proxy.downstream.channel import (
    ANSWER,
    COLLECT,
    COLLECTED,
    DRAINING,
    READY,
    REPORT,
    STATE,
    WORKERS_DRAINING,
    WORKERS_READY,
    WORKERS_STARTING,
    Channel,
    file_in_memory,
)
from proxy.observe.totals import state_line
from proxy.settings.model import RouteSettings
from proxy.supervisor import collecting
from proxy.supervisor.channel import WorkerChannel
from proxy.supervisor.collecting import Collecting
from tests.support.settings import plain_settings


@dataclass
class Worker:
    """Both ends of a channel."""

    pid: int
    channel: WorkerChannel
    end: Channel
    started_at: float = 0.0

    def report(self, message: bytes, count: int | None = None) -> None:
        """Report this, with a state if there is a count."""
        if count is None:
            self.end.report(message)
        else:
            file = file_in_memory()
            file.write(state_line("route", "a", {"count": count}, {"pid": self.pid}).encode())
            self.end.send_file(message, file)
        while self.channel.read_reports():
            pass

    def receive(self) -> tuple[bytes, str]:
        """Return a message and its content."""
        message, descriptor = self.end.receive()
        if descriptor is None:
            return message, ""
        with open(descriptor, "rb") as file:
            file.seek(0)
            return message, file.read().decode()

    def received(self) -> dict[str, object]:
        """Return the sum of the states that came up to `COLLECTED`, which it checks to come last."""
        count = 0
        found: dict[str, object] = {}
        message = STATE
        while message == STATE:
            message, content = self.receive()
            for line in content.splitlines():
                kind, _, counted, now = json.loads(line)
                if kind == "supervisor":
                    found = now
                else:
                    count += counted["count"]
        assert message == COLLECTED
        return {**found, "count": count}


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    made = []
    for pid in (1, 2):
        ours, its = socket.socketpair()
        its.settimeout(20)
        made.append(Worker(pid, WorkerChannel(ours), Channel(its, [])))
    for worker in made:
        worker.report(READY)
    yield made
    for worker in made:
        worker.channel.close()
        worker.end.socket.close()
        if worker.channel.state is not None:
            worker.channel.state.close()


def test_a_request_gets_the_states_of_all_workers_once_all_have_reported(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "dropped_lines", lambda: 9)
    one, other = workers
    found = Collecting()
    found.restarts = 3
    one.report(COLLECT)
    found.check(workers)
    assert (one.receive()[0], other.receive()[0]) == (REPORT, REPORT)
    one.report(ANSWER, 5)
    # A state from before the question is no answer.
    other.report(STATE, 6)
    found.check(workers)
    assert found.due > time.monotonic()
    other.report(ANSWER, 7)
    found.check(workers)
    got = one.received()
    assert (got["count"], got["restarts"], got["log_lines_dropped"]) == (12, 3, 9)
    assert [row[:2] for row in got["workers"]] == [[1, "ready"], [2, "ready"]]  # type: ignore[attr-defined]
    assert found.due == float("inf")


def test_a_request_during_a_collection_gets_a_collection_of_its_own(workers: list[Worker]) -> None:
    one, other = workers
    found = Collecting()
    one.report(COLLECT)
    found.check(workers)
    other.report(COLLECT)
    found.check(workers)
    assert (one.receive()[0], other.receive()[0]) == (REPORT, REPORT)
    for worker in workers:
        worker.report(ANSWER, 1)
    found.check(workers)
    assert one.received()["count"] == 2
    assert (one.receive()[0], other.receive()[0]) == (REPORT, REPORT)
    for worker in workers:
        worker.report(ANSWER, 2)
    found.check(workers)
    assert other.received()["count"] == 4


def test_a_worker_that_does_not_report_counts_with_its_last_state(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "_REPORT_SECONDS", 0.0)
    one, other = workers
    found = Collecting()
    other.report(STATE, 6)
    one.report(COLLECT)
    found.check(workers)
    one.report(ANSWER, 5)
    found.check(workers)
    assert one.receive()[0] == REPORT
    got = one.received()
    assert got["count"] == 11
    assert [row[1] for row in got["workers"]] == ["ready", "silent"]  # type: ignore[attr-defined]


def test_counters_of_an_ended_worker_are_kept(workers: list[Worker]) -> None:
    one, other = workers
    found = Collecting()
    other.report(STATE, 6)
    other.end.socket.close()
    assert not other.channel.read_reports()
    found.retire(other.channel)
    found.retire(one.channel)  # It had not reported yet.
    for expected in (7, 1):
        one.report(COLLECT)
        found.check([one])
        assert one.receive()[0] == REPORT
        one.report(ANSWER, 1)
        found.check([one])
        assert one.received()["count"] == expected
        found.keep(plain_settings())


def test_an_ended_worker_brings_no_counters_of_a_removed_route_back(workers: list[Worker]) -> None:
    one, other = workers
    found = Collecting()
    found.keep(plain_settings(routes={"a": RouteSettings(url="https://a-123456789012.run.app")}))
    other.report(STATE, 6)
    found.keep(plain_settings())
    found.retire(other.channel)
    one.report(COLLECT)
    found.check([one])
    assert one.receive()[0] == REPORT
    one.report(ANSWER, 1)
    found.check([one])
    assert one.received()["count"] == 1


def test_an_ended_worker_is_not_waited_for(workers: list[Worker]) -> None:
    one, other = workers
    found = Collecting()
    one.report(COLLECT)
    found.check(workers)
    assert one.receive()[0] == REPORT
    one.report(ANSWER, 1)
    other.end.socket.close()
    other.channel.read_reports()
    other.channel.close()
    found.check(workers)
    assert one.received()["count"] == 1


def test_workers_are_told_when_the_readiness_of_the_group_changes(workers: list[Worker]) -> None:
    one, other = workers
    found = Collecting()
    found.tell_readiness(workers, started=False)
    found.tell_readiness(workers, started=True)
    found.tell_readiness(workers, started=True)
    other.report(DRAINING)
    found.tell_readiness(workers, started=True)
    found.tell_readiness([one], started=True)
    found.tell_readiness([one], started=False)
    expected = [WORKERS_READY, WORKERS_DRAINING, WORKERS_READY, WORKERS_STARTING]
    assert [one.receive()[0] for _ in expected] == expected
    assert [other.receive()[0] for _ in range(2)] == [WORKERS_READY, WORKERS_DRAINING]

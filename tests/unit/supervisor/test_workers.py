"""The supervisor of worker processes. How workers carry out its commands is tested with the real program."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker, spawn
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.downstream.binding import ListenFailed
from proxy.downstream.channel import Channel
from proxy.downstream.config import ListenerConfig
from proxy.signals import HANDLED_SIGNALS
from proxy.supervisor import accepting, restarts, workers
from proxy.supervisor.process import WorkerProcess
from proxy.supervisor.watchdog import Watchdog
from proxy.supervisor.workers import run_workers
from tests.support.signals import signals_restored
from tests.unit.supervisor import crew


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    with signals_restored():
        yield


def run(
    work: Callable[[ListenerConfig, Channel], None], payload: str = "", *, drain_seconds: float = 30.0, count: int = 2
) -> int:
    return run_workers(ListenerConfig(("127.0.0.1:0",), count, payload), work, drain_seconds=drain_seconds)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_workers_that_exit_after_the_command_exit_with_0(number: str) -> None:
    assert run(crew.obedient, number) == 0


def test_signals_after_the_end_are_ignored() -> None:
    assert run(crew.obedient, "SIGTERM") == 0
    for number in HANDLED_SIGNALS:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_other_signals_end_no_worker(number: str) -> None:
    assert run(crew.signalling, number, count=1) == 0


def test_a_second_signal_makes_the_workers_abort() -> None:
    assert run(crew.reluctant, count=1) == 0


def test_a_second_signal_reaches_workers_that_take_no_more_connections(tmp_path: Path) -> None:
    config = ListenerConfig(("127.0.0.1:0",), 2, str(tmp_path))
    assert run_workers(config, crew.lingering, drain_seconds=60) == 0


def test_a_signal_during_the_start_of_workers_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    start = workers._Supervisor._start_worker

    def interrupted(self: workers._Supervisor) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start(self)

    monkeypatch.setattr(workers._Supervisor, "_start_worker", interrupted)
    assert run(crew.obedient, "SIGCHLD") == 0


def test_a_worker_that_does_not_exit_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_ABORT_SECONDS", 0.1)
    assert run(crew.stuck, drain_seconds=0.1) == 1


@pytest.mark.parametrize(("of_a_worker", "of_all"), [("1", 1), ("2", 2), ("7", 1), ("120", 1)])
def test_the_exit_code_is_2_only_if_a_worker_found_unusable_settings(of_a_worker: str, of_all: int) -> None:
    assert run(crew.failing, of_a_worker) == of_all


def test_workers_that_exit_without_a_command_are_a_failure_even_with_0() -> None:
    assert run(crew.failing, "0") == 1


def test_after_the_death_of_a_worker_at_the_start_the_others_exit(tmp_path: Path) -> None:
    with capture_logs() as lines:
        assert run(crew.killed, str(tmp_path)) == 1
    (failed,) = [line for line in lines if line["event"] == "worker failed: draining the others"]
    assert failed["signal"] == "SIGKILL"
    assert failed["remedy"].endswith("raise the limit of memory, or serve with fewer workers")


def test_a_worker_that_was_ready_is_replaced_until_one_is_ready_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_LONGEST_DELAY_UNSERVED_SECONDS", 0.1)
    with ThreadPoolExecutor(1) as threads, capture_logs() as lines:
        connecting = threads.submit(connected_to, f"{tmp_path}/s")
        config = ListenerConfig((f"unix:{tmp_path}/s",), 1, str(tmp_path))
        assert run_workers(config, crew.dying, drain_seconds=30) == 0
        connecting.result().close()
    died = [line for line in lines if line["event"] == "worker died: starting another"]
    assert [(line["exit_code"], line["after_seconds"]) for line in died] == [(3, 0.0), (4, 0.1)]


def test_a_worker_that_was_told_to_end_has_not_failed_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_FIRST_DELAY_SECONDS", 3600.0)
    monkeypatch.setattr(restarts, "_LONGEST_DELAY_UNSERVED_SECONDS", 3600.0)
    with capture_logs() as lines:
        config = ListenerConfig((f"unix:{tmp_path}/s",), 1, str(tmp_path))
        assert run_workers(config, crew.told, drain_seconds=30) == 0
    assert len([line for line in lines if line["event"] == "worker was told to end: starting another"]) == 2


def test_a_worker_is_replaced_though_its_end_is_seen_before_another_ones_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(selectors.DefaultSelector):
        """Returns nothing until a worker has exited, and that first."""

        _waits = True

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            events = super().select(timeout)
            while self._waits:
                exits = [(key, event) for key, event in events if isinstance(key.fileobj, int)]
                if exits:
                    self._waits = False
                    return exits
                events = super().select(None)
            return events

    monkeypatch.setattr(selectors, "DefaultSelector", Late)
    os.mkfifo(tmp_path / "ready")
    with capture_logs() as lines:
        assert run(crew.brief, str(tmp_path)) == 0
    assert [line["exit_code"] for line in lines if line["event"] == "worker died: starting another"] == [3]


def test_a_worker_that_hangs_while_it_starts_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = WorkerProcess.start
    works = [crew.dying, crew.hanging, crew.dying]

    def started(work: object, *args: Any, **more: Any) -> WorkerProcess:
        work = works.pop(0)
        worker = start(work, *args, **more)
        if work is crew.hanging:
            worker.start_by = worker.started_at
        return worker

    monkeypatch.setattr(WorkerProcess, "start", started)
    (tmp_path / "second").touch()
    with ThreadPoolExecutor(1) as threads, capture_logs() as lines:
        connecting = threads.submit(connected_to, f"{tmp_path}/s")
        config = ListenerConfig((f"unix:{tmp_path}/s",), 1, str(tmp_path))
        assert run_workers(config, crew.dying, drain_seconds=30) == 0
        connecting.result().close()
    (killed,) = [line["pid"] for line in lines if line["event"] == "worker does not start: killing it"]
    died = [line for line in lines if line["event"] == "worker died: starting another"]
    assert [(line.get("exit_code"), line.get("signal")) for line in died] == [(3, None), (None, "SIGKILL")]
    assert died[1]["pid"] == killed
    assert not works


def test_a_worker_that_stands_still_is_killed_and_replaced_without_a_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Watchdog.look

    def first_only(self: Watchdog, now: float) -> bool:
        return look(self, now) and not [line for line in lines if "stands still" in line["event"]]

    monkeypatch.setattr(Watchdog, "look", first_only)
    monkeypatch.setattr(workers, "_SILENCE_SECONDS", 0.1)
    with capture_logs() as lines:
        config = ListenerConfig((f"unix:{tmp_path}/s",), 1, str(tmp_path))
        assert run_workers(config, crew.standing, drain_seconds=30) == 0
    (killed,) = [line["pid"] for line in lines if line["event"] == "worker's event loop stands still: killing it"]
    (died,) = [line for line in lines if line["event"] == "worker died: starting another"]
    assert (died["pid"], died["signal"]) == (killed, "SIGKILL")
    assert "remedy" not in died


def test_a_worker_that_cannot_be_started_is_started_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, pair = SpawnProcess.start, socket.socketpair
    pairs: list[tuple[socket.socket, socket.socket]] = []
    refusals = [errno.EAGAIN, 0]  # the last one comes first

    def paired() -> tuple[socket.socket, socket.socket]:
        pairs.append(pair())
        return pairs[-1]

    def refused(self: SpawnProcess) -> None:
        if refusals and (number := refusals.pop()):
            raise OSError(number, os.strerror(number))
        start(self)

    monkeypatch.setattr(socket, "socketpair", paired)
    monkeypatch.setattr(SpawnProcess, "start", refused)
    with ThreadPoolExecutor(1) as threads, capture_logs() as lines:
        connecting = threads.submit(connected_to, f"{tmp_path}/s")
        config = ListenerConfig((f"unix:{tmp_path}/s",), 1, str(tmp_path))
        assert run_workers(config, crew.dying, drain_seconds=30) == 0
        connecting.result().close()
    (line,) = [line for line in lines if line["event"] == "worker could not be started: trying again"]
    assert line["reason"] == os.strerror(errno.EAGAIN)
    assert "ulimit -u" in line["remedy"]
    assert [end.fileno() for end in pairs[-3]] == [-1, -1]


def test_a_first_worker_that_cannot_be_started_ends_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: SpawnProcess) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(SpawnProcess, "start", refused)
    with capture_logs() as lines:
        assert run(crew.failing, "7") == 1
    (line,) = [line for line in lines if line["event"] == "worker could not be started: draining the others"]
    assert line["reason"] == os.strerror(errno.EAGAIN)
    assert "ulimit -u" in line["remedy"]


def test_workers_are_started_though_the_working_directory_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert run(crew.obedient, "SIGTERM") == 0


def test_a_worker_that_dies_before_it_reads_its_settings_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    resource_tracker.ensure_running()  # while there is an interpreter
    monkeypatch.setattr(spawn, "_python_exe", b"/bin/false")
    assert run(crew.failing, "many routes" * 20_000) == 1


def test_a_worker_that_dies_before_it_reads_a_long_command_line_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    resource_tracker.ensure_running()  # while there is an interpreter
    monkeypatch.setattr(spawn, "_python_exe", b"/bin/false")
    monkeypatch.setattr(
        sys, "argv", ["cloudrun-sidecar", "serve", *(f"--route={n}=https://a.example" for n in range(10_000))]
    )
    assert run(crew.failing) == 1
    assert len(sys.argv) == 10_002


def test_a_worker_has_its_settings_however_long_they_are() -> None:
    assert run(crew.measuring, "ä" * 500_000, count=1) == 0


def connected_to(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    while connection.connect_ex(path):  # until it listens
        pass
    return connection


def test_an_address_in_use_starts_no_worker() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ListenerConfig((f"127.0.0.1:{taken.getsockname()[1]}",), 2, "7")
        with pytest.raises(ListenFailed):
            run_workers(config, crew.failing, drain_seconds=1)


def test_sockets_are_released_at_the_end(tmp_path: Path) -> None:
    config = ListenerConfig((f"unix:{tmp_path}/s",), 1, "SIGTERM")
    assert run_workers(config, crew.obedient, drain_seconds=1) == 0
    assert not list(tmp_path.iterdir())


# ---- connections


def handing(
    tmp_path: Path, work: Callable[[ListenerConfig, Channel], None], connections: int, *, one_by_one: bool = False
) -> tuple[int, list[socket.socket]]:
    """Run two workers, connect, send SIGTERM once the last connection is answered; return exit code and sockets."""
    path = f"{tmp_path}/listening"
    made: list[socket.socket] = []

    def connect() -> None:
        try:
            for _ in range(connections):
                made.append(socket.socket(socket.AF_UNIX))
                made[-1].settimeout(60)  # the test fails then, and does not hang
                while made[-1].connect_ex(path):  # until it listens
                    pass
                if one_by_one:
                    made[-1].recv(1, socket.MSG_PEEK)
            made[-1].recv(1, socket.MSG_PEEK)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    config = ListenerConfig((f"unix:{path}",), 2, str(tmp_path))
    with ThreadPoolExecutor(1) as threads:
        connecting = threads.submit(connect)
        code = run_workers(config, work, drain_seconds=30)
        connecting.result()
    return code, made


def test_each_connection_goes_to_the_worker_with_the_fewest(tmp_path: Path) -> None:
    code, made = handing(tmp_path, crew.answering, 16)
    assert code == 0
    answers = Counter(connection.recv(32) for connection in made)
    assert sorted(answers.values()) == [8, 8]
    for connection in made:
        connection.close()


def test_a_worker_whose_connections_have_closed_gets_the_next_ones(tmp_path: Path) -> None:
    code, made = handing(tmp_path, crew.closing, 12, one_by_one=True)
    assert code == 0
    answers = [int(connection.recv(32)) for connection in made]
    closing = int((tmp_path / "pid").read_text())
    has = dict.fromkeys(answers, 0)
    for place, answer in enumerate(answers, 1):
        assert has[answer] == min(has.values())
        has[answer] += 1
        if answers[:place].count(closing) == 3 and answer == closing:
            has[closing] = 1
    assert has[closing] == 5
    for connection in made:
        connection.close()


def test_a_worker_that_does_not_read_gets_no_connections(tmp_path: Path) -> None:
    code, made = handing(tmp_path, crew.deaf, 60)
    assert code == 0
    (answered,) = {connection.recv(32) for connection in made[-20:]}  # all by the other worker
    assert answered
    for connection in made:
        connection.close()


def test_accepting_pauses_at_the_limit_of_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accept = socket.socket.accept
    refusals = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

    def sometimes(self: socket.socket) -> tuple[socket.socket, object]:
        if refusals:
            raise refusals.pop()
        return accept(self)

    monkeypatch.setattr(accepting, "_NO_DESCRIPTORS_SECONDS", 0.05)
    monkeypatch.setattr(socket.socket, "accept", sometimes)
    code, made = handing(tmp_path, crew.answering, 2)
    assert code == 0
    assert len({connection.recv(32) for connection in made}) == 2
    for connection in made:
        connection.close()


@pytest.mark.parametrize("connections", [1, 50])
def test_connections_in_the_queue_when_the_last_worker_leaves_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    stop = accepting.Accepting.stop
    made: list[socket.socket] = []

    def late(self: accepting.Accepting, last: WorkerProcess) -> None:
        for _ in range(connections):
            made.append(socket.socket(socket.AF_UNIX))
            made[-1].connect(f"{tmp_path}/s")
        stop(self, last)
        with socket.socket(socket.AF_UNIX) as later, pytest.raises(ConnectionRefusedError):
            later.connect(f"{tmp_path}/s")

    monkeypatch.setattr(accepting.Accepting, "stop", late)
    config = ListenerConfig((f"unix:{tmp_path}/s",), 2, str(tmp_path))
    assert run_workers(config, crew.leaving, drain_seconds=30) == 0
    assert len(made) == connections
    assert len({connection.recv(32) for connection in made} - {b""}) == 1
    for connection in made:
        connection.close()

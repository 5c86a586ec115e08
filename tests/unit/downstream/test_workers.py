"""The parent of worker processes. What workers make of its orders is tested with the real program."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import hypercorn.run
import pytest

from proxy.downstream import workers
from proxy.downstream.binding import ListenFailed
from proxy.downstream.config import ListenerConfig
from proxy.downstream.orders import Order, Orders
from proxy.downstream.signals import HANDLED_SIGNALS
from proxy.downstream.workers import run_workers
from tests.support.signals import signals_restored
from tests.unit.downstream import crew


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    with signals_restored():
        yield


def run(worker: Callable[..., None], payload: str = "", *, drain_seconds: float = 30.0, count: int = 2) -> int:
    return run_workers(ListenerConfig(("127.0.0.1:0",), count, payload), worker, drain_seconds=drain_seconds)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_workers_that_end_when_told_end_with_0(number: str) -> None:
    assert run(crew.obedient, number) == 0


def test_signals_after_the_end_change_nothing() -> None:
    assert run(crew.obedient, "SIGTERM") == 0
    for number in HANDLED_SIGNALS:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_other_signals_end_nobody(number: str) -> None:
    assert run(crew.signalling, number, count=1) == 0


def test_who_is_told_twice_has_the_workers_cut() -> None:
    assert run(crew.reluctant, count=1) == 0


def test_a_signal_that_comes_while_workers_are_started_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    populate = hypercorn.run._populate

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        populate(*arguments)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(hypercorn.run, "_populate", interrupted)
    assert run(crew.obedient, "SIGCHLD") == 0


def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_CUT_SECONDS", 0.1)
    assert run(crew.stuck, drain_seconds=0.1) == 1


@pytest.mark.parametrize(("of_a_worker", "of_all"), [("1", 1), ("2", 2), ("7", 1), ("120", 1)])
def test_wrong_settings_of_a_worker_are_the_programs_and_all_else_may_pass(of_a_worker: str, of_all: int) -> None:
    assert run(crew.failing, of_a_worker) == of_all


def test_workers_that_end_unasked_are_a_failure_even_with_0() -> None:
    assert run(crew.failing, "0") == 1


def test_a_worker_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    assert run(crew.killed, str(tmp_path)) == 1


def test_a_busy_address_starts_nobody() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ListenerConfig((f"127.0.0.1:{taken.getsockname()[1]}",), 2, "7")
        with pytest.raises(ListenFailed):
            run_workers(config, crew.failing, drain_seconds=1)


def test_sockets_are_released_in_the_end(tmp_path: Path) -> None:
    config = ListenerConfig((f"unix:{tmp_path}/s",), 1, "SIGTERM")
    assert run_workers(config, crew.obedient, drain_seconds=1) == 0
    assert not list(tmp_path.iterdir())


def test_orders_only_ever_grow() -> None:
    orders = Orders(get_context("spawn"))
    seen = [orders.latest]
    for give in (orders.drain, orders.drain, orders.end, orders.drain, orders.end):
        give()
        seen.append(orders.latest)
    assert seen == [Order.SERVE, Order.DRAIN, Order.DRAIN, Order.CUT, Order.CUT, Order.CUT]


def test_the_first_end_drains() -> None:
    orders = Orders(get_context("spawn"))
    orders.end()
    assert orders.latest is Order.DRAIN

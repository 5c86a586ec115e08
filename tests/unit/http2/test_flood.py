from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.http2.flood import Allowance


def lasts(spend: Callable[[Allowance], bool], earn: Callable[[Allowance], None], rounds: int) -> bool:
    allowance = Allowance()
    for _ in range(rounds):
        if not spend(allowance):
            return False
        earn(allowance)
    return True


def nothing(_: Allowance) -> None:
    pass


@pytest.mark.parametrize(
    ("spend", "most"),
    [
        (Allowance.cancelled, 1_000),
        (Allowance.idle_frame, 2_000),
        (Allowance.empty_data, 500),
        (Allowance.settings, 100),
    ],
)
def test_who_earns_nothing_runs_out(spend: Callable[[Allowance], bool], most: int) -> None:
    assert lasts(spend, nothing, most)
    assert not lasts(spend, nothing, most + 1)


@pytest.mark.parametrize(
    ("spend", "earn"),
    [
        (Allowance.cancelled, Allowance.answered),
        (Allowance.idle_frame, Allowance.read),
        (Allowance.idle_frame, Allowance.head),
        (Allowance.idle_frame, lambda allowance: allowance.content(1)),
        (Allowance.empty_data, Allowance.head),
        (Allowance.settings, lambda allowance: (allowance.head(), allowance.content(1))[0]),
    ],
)
def test_who_earns_as_much_lasts(spend: Callable[[Allowance], bool], earn: Callable[[Allowance], None]) -> None:
    assert lasts(spend, earn, 100_000)


def test_content_earns_by_its_octets() -> None:
    allowance = Allowance()
    for _ in range(2_000):
        allowance.idle_frame()
    allowance.content(16_384)
    assert all(allowance.idle_frame() for _ in range(68))
    assert not allowance.idle_frame()


def test_nothing_is_saved_beyond_the_start() -> None:
    allowance = Allowance()
    for _ in range(1_000):
        allowance.read()
        allowance.head()
        allowance.content(1 << 20, frames=64)
        allowance.answered()
    assert sum(allowance.idle_frame() for _ in range(5_000)) == 2_000
    assert sum(allowance.cancelled() for _ in range(5_000)) == 1_000


def test_one_account_does_not_pay_for_the_other() -> None:
    allowance = Allowance()
    while allowance.cancelled():
        pass
    assert allowance.idle_frame()

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from proxy.http2.events import ErrorCode
from proxy.http2.policy.faults import ConnectionFault
from proxy.http2.policy.flood import FloodGuard

WINDOW = 1 << 20
Charge: TypeAlias = Callable[[FloodGuard], object]
Credit: TypeAlias = Callable[[FloodGuard], object]


def passes(charge: Callable[[], object]) -> bool:
    try:
        charge()
    except ConnectionFault as exc:
        return exc.code != ErrorCode.ENHANCE_YOUR_CALM
    return True


def lasts(charge: Charge, credit: Credit, rounds: int) -> bool:
    guard = FloodGuard(WINDOW)
    for _ in range(rounds):
        if not passes(lambda: charge(guard)):
            return False
        credit(guard)
    return True


def nothing(_: FloodGuard) -> None:
    pass


@pytest.mark.parametrize(
    ("charge", "most"),
    [
        (FloodGuard.charge_reset, 1_000),
        (FloodGuard.charge_control_frame, 2_000),
        (FloodGuard.charge_empty_data, 500),
        (FloodGuard.charge_settings, 100),
        (lambda guard: guard.charge_late_content(1 << 20), 32),
    ],
)
def test_an_account_without_credit_runs_out(charge: Charge, most: int) -> None:
    assert lasts(charge, nothing, most)
    assert not lasts(charge, nothing, most + 1)


@pytest.mark.parametrize(
    ("charge", "credit"),
    [
        (FloodGuard.charge_reset, FloodGuard.credit_response),
        (lambda guard: guard.charge_late_content(WINDOW), FloodGuard.credit_head),
        (lambda guard: guard.charge_late_content(WINDOW), lambda guard: guard.credit_live_content(WINDOW)),
        (FloodGuard.charge_control_frame, FloodGuard.credit_read),
        (FloodGuard.charge_control_frame, FloodGuard.credit_head),
        (FloodGuard.charge_control_frame, lambda guard: guard.credit_content(1, 1)),
        (FloodGuard.charge_empty_data, FloodGuard.credit_head),
        (FloodGuard.charge_settings, lambda guard: (guard.credit_head(), guard.credit_content(1, 1))[0]),
    ],
)
def test_an_account_lasts_as_long_as_it_is_credited_what_it_is_charged(charge: Charge, credit: Credit) -> None:
    assert lasts(charge, credit, 100_000)


def test_content_is_credited_by_its_octets() -> None:
    guard = FloodGuard(WINDOW)
    for _ in range(2_000):
        guard.charge_control_frame()
    guard.credit_content(16_384, 1)
    assert all(passes(guard.charge_control_frame) for _ in range(68))
    assert not passes(guard.charge_control_frame)


def test_credit_never_exceeds_the_initial_amount() -> None:
    guard = FloodGuard(WINDOW)
    for _ in range(1_000):
        guard.credit_read()
        guard.credit_head()
        guard.credit_content(1 << 20, 64)
        guard.credit_response()
    assert sum(passes(guard.charge_control_frame) for _ in range(5_000)) == 2_000
    assert sum(passes(guard.charge_reset) for _ in range(5_000)) == 1_000
    assert sum(passes(lambda: guard.charge_late_content(WINDOW)) for _ in range(50)) == 32


def test_accounts_are_independent() -> None:
    guard = FloodGuard(WINDOW)
    while passes(guard.charge_reset):
        pass
    assert passes(guard.charge_control_frame)

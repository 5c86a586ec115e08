"""What signals are called."""

from __future__ import annotations

import signal

import pytest

from proxy.signals import signal_name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGRTMIN, "SIGRTMIN"),
        (signal.SIGRTMIN + 3, f"signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_signals_without_a_name_are_told_by_number(number: int, name: str) -> None:
    assert signal_name(number) == name

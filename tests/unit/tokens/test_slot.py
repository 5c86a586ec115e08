from __future__ import annotations

from proxy.tokens.slot import Slot
from tests.unit.tokens.values import KEY, token_of


def test_an_empty_slot_has_no_token() -> None:
    slot = Slot()
    assert slot.usable_token(0.0) is None
    assert slot.usable_token(1e12) is None
    assert not slot.used
    assert slot.usable_seconds(0.0) < 0


def test_a_token_is_current_until_60_seconds_before_it_expires() -> None:
    slot = Slot()
    token = token_of(KEY, 1000.0)
    slot.fill(token)
    assert slot.usable_token(939.999) is token
    assert slot.usable_token(940.0) is None
    assert slot.usable_token(5000.0) is None


def test_taking_the_token_marks_the_slot_and_a_new_token_unmarks_it() -> None:
    slot = Slot()
    slot.fill(token_of(KEY, 1000.0))
    assert slot.usable_token(940.0) is None
    assert not slot.used
    assert slot.usable_token(1.0) is not None
    assert slot.used
    slot.fill(token_of(KEY, 2000.0))
    assert not slot.used


def test_a_cleared_slot_has_no_token() -> None:
    slot = Slot()
    slot.fill(token_of(KEY, 1000.0))
    slot.clear()
    assert slot.usable_token(1.0) is None

"""Some hundred random peers for each engine; `python -m tests.fuzz` runs as many as one likes; see there."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.case import Case
from tests.support.peers.engines import EventFactory, each_engine

NUMBERS = st.integers(0, 1 << 64)


@each_engine
@given(number=NUMBERS)
@settings(max_examples=400)
def test_random_peers_do_not_break_an_engine(make: EventFactory, number: int) -> None:
    Case(make, number).run()

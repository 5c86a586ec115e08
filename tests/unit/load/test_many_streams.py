"""What the measurement of many streams says."""

from __future__ import annotations

from tests.load.many_streams import Measured

MIB = 1 << 20


def measured(again: int) -> Measured:
    return Measured(idle=50 * MIB, opened=90 * MIB, echoed=100 * MIB, closed=95 * MIB, again=again, messages=1)


def test_a_stream_takes_its_part_of_what_was_added() -> None:
    assert measured(100 * MIB).stream_octets(10_000) == 5242


def test_memory_that_grows_with_the_second_round_is_wrong() -> None:
    assert measured(109 * MIB).wrong() == []
    (wrong,) = measured(111 * MIB).wrong()
    assert wrong.startswith("memory is not used again: 104,857,600 octets at first, then 116,391,936")

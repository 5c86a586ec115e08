from __future__ import annotations

from proxy.http2.policy.compression import REMEMBERED_LINES, SentLines


def test_the_memory_for_known_lines_is_bounded() -> None:
    lines = SentLines()
    for number in range(REMEMBERED_LINES + 1):
        assert not lines.is_repeated(b"x-id", b"%d" % number, 4_096)
    assert lines.is_repeated(b"x-id", b"%d" % REMEMBERED_LINES, 4_096)
    assert lines.is_repeated(b"x-id", b"1", 4_096)
    assert not lines.is_repeated(b"x-id", b"0", 4_096), "the oldest was forgotten"


def test_a_line_is_new_again_after_it_was_evicted_from_the_table() -> None:
    lines = SentLines()
    assert [lines.is_repeated(b"x", b"y", 4_096) for _ in range(4)] == [False, True, False, True]


def test_lines_with_the_same_octets_split_differently_are_different() -> None:
    lines = SentLines()
    assert not lines.is_repeated(b"xy", b"z", 4_096)
    assert not lines.is_repeated(b"x", b"yz", 4_096)


def test_a_line_of_more_than_half_of_the_table_never_enters_it() -> None:
    sent = SentLines()
    octets = 64
    value = b"v" * (octets // 2 - 32)
    assert [sent.is_repeated(b"n", value, octets) for _ in range(3)] == [False, False, False]
    assert [sent.is_repeated(b"", value, octets) for _ in range(2)] == [False, True]

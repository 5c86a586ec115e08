from __future__ import annotations

from proxy.observe.throttle import Throttle


def test_one_line_a_second_is_written_with_the_number_of_those_left_out() -> None:
    throttle = Throttle()
    assert throttle.fields("a", 10.0) == {}
    assert throttle.fields("a", 10.5) is None
    assert throttle.fields("a", 10.9) is None
    assert throttle.fields("a", 11.0) == {"repeats_dropped": 2}
    assert throttle.fields("a", 11.1) is None
    assert throttle.fields("a", 99.0) == {"repeats_dropped": 1}
    assert throttle.fields("a", 100.0) == {}


def test_each_kind_has_its_own_limit() -> None:
    throttle = Throttle()
    assert throttle.fields(("route", "draining"), 0.0) == {}
    assert throttle.fields(("other", "draining"), 0.0) == {}
    assert throttle.fields(("route", "draining"), 0.0) is None
    assert throttle.fields(("other", "draining"), 1.0) == {}


def test_of_any_number_of_kinds_a_bounded_number_of_lines_is_written_and_every_other_one_is_counted() -> None:
    throttle = Throttle(most_kinds=3)
    for second in (0.0, 1.0):
        found = [throttle.fields((second, number), second) for number in range(100)]
        written = [each for each in found if each is not None]
        assert len(written) == 4
        if second:
            assert sum(each.get("repeats_dropped", 0) for each in written) == 96


def test_what_was_dropped_of_a_kind_that_is_forgotten_is_told_with_the_others() -> None:
    throttle = Throttle(most_kinds=1)
    assert throttle.fields("a", 0.0) == {}
    assert throttle.fields("a", 0.5) is None
    assert throttle.fields("b", 1.0) == {}
    assert throttle.fields("c", 1.0) == {"repeats_dropped": 1}

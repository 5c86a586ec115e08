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

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http2.policy.sending import RoundRobin, SendQueue, Step

TRAILERS = [(b"x", b"y", False)]


def queue(
    content: bytes = b"",
    *,
    ended: bool = False,
    trailers: bool = False,
    reset_code: int | None = None,
    reset_waits: bool = False,
) -> SendQueue:
    made = SendQueue()
    made.content += content
    made.ended = ended or trailers
    made.trailers = TRAILERS if trailers else None
    made.reset_code, made.reset_waits = reset_code, reset_waits
    return made


@pytest.mark.parametrize(
    ("queued", "window", "step", "octets"),
    [
        (queue(b"0123"), 9, Step.CONTENT, 4),
        (queue(b"0123"), 3, Step.CONTENT, 3),
        (queue(b"0123456"), 9, Step.CONTENT, 5),  # the greatest frame
        (queue(b"0123", ended=True), 9, Step.LAST_CONTENT, 4),
        (queue(b"0123", ended=True), 3, Step.CONTENT, 3),
        (queue(b"0123456", ended=True), 9, Step.CONTENT, 5),
        (queue(b"0123", trailers=True), 9, Step.CONTENT, 4),
        (queue(b"0123", ended=True), 0, Step.WAIT, 0),
        (queue(b"0123"), -9, Step.WAIT, 0),
        (queue(b"0123", reset_code=8), 9, Step.CONTENT, 4),
        (queue(b"0123", reset_code=8), 0, Step.RESET, 0),
        (queue(b"0123", reset_code=0), 0, Step.RESET, 0),
        (queue(b"0123", reset_code=8, reset_waits=True), 0, Step.WAIT, 0),
        (queue(ended=True), -9, Step.END, 0),
        (queue(trailers=True), -9, Step.TRAILERS, 0),
        (queue(ended=True, reset_code=8), 0, Step.END, 0),
        (queue(trailers=True, reset_code=8), 0, Step.TRAILERS, 0),
        (queue(reset_code=8), -9, Step.RESET, 0),
        (queue(reset_code=8, reset_waits=True), -9, Step.RESET, 0),
    ],
)
def test_a_stream_in_its_turn_sends_what_its_queue_and_window_allow(
    queued: SendQueue, window: int, step: Step, octets: int
) -> None:
    assert queued
    assert queued.next_step(window, 5) == (step, octets)


def test_a_stream_with_an_empty_queue_gets_no_turn() -> None:
    assert not queue()


def test_content_is_cut_from_the_front() -> None:
    queued = queue(b"0123456")
    assert queued.cut(3) == b"012"
    assert queued.content == b"3456"


# ---- turns


def turns(*streams: int) -> RoundRobin:
    made = RoundRobin()
    for stream_id in streams:
        made.add(stream_id)
    return made


def drained(made: RoundRobin) -> list[int]:
    order = []
    while (stream_id := made.next()) is not None:
        order.append(stream_id)
    assert not made
    return order


def test_streams_take_turns_in_the_order_in_which_they_were_added() -> None:
    assert drained(turns(3, 1, 5, 1, 3)) == [3, 1, 5]


def test_a_stream_goes_to_the_end_of_the_line_after_its_turn() -> None:
    made = turns(1, 3)
    assert made.next() == 1
    made.add(1)
    assert drained(made) == [3, 1]


def test_a_stream_with_a_closed_window_does_not_stop_the_others() -> None:
    made = turns(1, 3)
    made.block(made.next() or 0)
    assert drained(made) == [3]
    made.unblock(3)
    assert not made, "it waits for nothing"
    made.unblock(1)
    assert drained(made) == [1]


def test_blocked_streams_continue_in_the_order_in_which_they_stopped() -> None:
    made = turns(1, 3, 5)
    for _ in range(3):
        made.block(made.next() or 0)
    made.unblock_all()
    assert drained(made) == [1, 3, 5]
    made.unblock_all()
    assert not made


def test_a_blocked_stream_is_unblocked_when_more_is_queued() -> None:
    made = turns(1)
    made.block(made.next() or 0)
    made.add(1)
    assert drained(made) == [1]
    made.unblock_all()
    assert not made


def test_closed_streams_get_no_turn() -> None:
    made = turns(1, 3, 5)
    made.block(made.next() or 0)
    made.remove(1)
    made.remove(5)
    made.remove(99)
    made.unblock_all()
    assert drained(made) == [3]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=1, max_size=9, unique_by=lambda one: one[0]))
def test_every_stream_gets_the_turns_that_it_needs_and_never_two_in_a_row_while_others_wait(
    needs: list[tuple[int, int]],
) -> None:
    left = {stream_id: need for stream_id, need in needs if need}
    made = turns(*left)
    last = 0
    while (stream_id := made.next()) is not None:
        assert stream_id != last or len(left) == 1
        left[stream_id] -= 1
        if left[stream_id]:
            made.add(stream_id)
        else:
            del left[stream_id]
        last = stream_id
    assert not left

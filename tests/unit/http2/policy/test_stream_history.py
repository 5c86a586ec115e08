"""What a late frame is (RFC 9113, 5.1 and 5.1.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http2.policy.faults import ConnectionFault
from proxy.http2.policy.stream_history import REMEMBERED, StreamHistory

STREAM_CLOSED, PROTOCOL_ERROR = 5, 1


def fault(history: StreamHistory, stream_id: int) -> int | None:
    try:
        history.content(stream_id, end=False)
    except ConnectionFault as exc:
        return exc.code
    return None


def test_a_stream_is_open_from_its_head_to_its_end() -> None:
    history = StreamHistory(client=False)
    history.section(1, end=False)
    assert fault(history, 1) is None
    history.section(1, end=True)
    assert fault(history, 1) == STREAM_CLOSED


def test_a_stream_may_end_with_its_head_or_by_a_reset() -> None:
    history = StreamHistory(client=False)
    history.section(1, end=True)
    history.section(3, end=False)
    history.reset(3)
    history.reset(3)
    assert fault(history, 1) == fault(history, 3) == STREAM_CLOSED


def test_skipped_ids_cannot_be_opened_later() -> None:
    history = StreamHistory(client=False)
    history.section(9, end=False)
    for stream_id in (1, 3, 5, 7):
        with pytest.raises(ConnectionFault) as raised:
            history.section(stream_id, end=False)
        assert raised.value.code == PROTOCOL_ERROR
        history.reset(stream_id)  # which has no effect
        assert fault(history, stream_id) == PROTOCOL_ERROR
    assert fault(history, 9) is None


def test_a_skipped_id_has_nothing_of_an_earlier_stream_in_its_place() -> None:
    history = StreamHistory(client=False)
    for stream_id in range(1, 2 * REMEMBERED, 2):
        history.section(stream_id, end=True)
    history.section(2 * REMEMBERED + 5, end=False)
    for skipped in (1, 3):
        assert fault(history, skipped) is None, "it is forgotten"
        assert fault(history, 2 * REMEMBERED + skipped) == PROTOCOL_ERROR
    assert fault(history, 5) is None
    assert fault(history, 7) == STREAM_CLOSED


def test_frames_on_idle_streams_and_even_ids_are_left_to_the_engine() -> None:
    history = StreamHistory(client=False)
    history.section(2, end=False)
    history.section(3, end=False)
    for stream_id in (0, 2, 4, 5, 99):
        assert fault(history, stream_id) is None
        history.reset(stream_id)
        assert fault(history, stream_id) is None


def test_a_server_opens_no_streams() -> None:
    history = StreamHistory(client=True)
    history.section(5, end=True)
    assert fault(history, 5) is None
    history.opened(1)
    history.section(1, end=False)
    history.content(1, end=True)
    assert fault(history, 1) == STREAM_CLOSED


def test_frames_on_a_stream_that_closed_long_ago_are_no_fault() -> None:
    history = StreamHistory(client=False)
    history.section(3, end=True)
    history.section(3 + 2 * (REMEMBERED - 1), end=False)
    assert fault(history, 1) is None
    assert fault(history, 3) == STREAM_CLOSED
    assert fault(history, 5) == PROTOCOL_ERROR
    history.section(3 + 2 * REMEMBERED, end=False)
    assert fault(history, 3) is None
    assert fault(history, 5) == PROTOCOL_ERROR
    history.section((1 << 31) - 1, end=False)
    assert fault(history, 3 + 2 * REMEMBERED) is None
    assert fault(history, (1 << 31) - 3) == PROTOCOL_ERROR


@given(
    st.lists(
        st.tuples(st.integers(0, 6_000), st.sampled_from(["head", "last head", "data", "end", "reset"])), max_size=60
    )
)
def test_the_bounded_history_agrees_with_a_complete_one(frames: list[tuple[int, str]]) -> None:
    history = StreamHistory(client=False)
    states: dict[int, str] = {}
    highest = -1
    for stream_id, frame in frames:
        odd = stream_id & 1 == 1
        expected: int | None = None
        if odd and frame in ("head", "last head") and stream_id > highest:
            highest = stream_id
            states[stream_id] = "open"
        if odd and highest - 2 * REMEMBERED < stream_id <= highest:
            if frame == "reset":
                states.update({stream_id: "ended"} if stream_id in states else {})
            elif stream_id not in states:
                expected = PROTOCOL_ERROR
            elif states[stream_id] == "ended":
                expected = STREAM_CLOSED
            elif frame in ("last head", "end"):
                states[stream_id] = "ended"
        code = None
        try:
            if frame == "reset":
                history.reset(stream_id)
            elif frame in ("head", "last head"):
                history.section(stream_id, end=frame == "last head")
            else:
                history.content(stream_id, end=frame == "end")
        except ConnectionFault as exc:
            code = exc.code
        assert code == expected

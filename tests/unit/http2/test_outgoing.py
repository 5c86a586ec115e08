from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.http2.framing import FrameReader, settings
from proxy.http2.outgoing import Outgoing, Rotation


class Lane:
    def __init__(self, stream_id: int, window: int = 1 << 30) -> None:
        self.stream_id = stream_id
        self.outbound_flow_control_window = window
        self.outgoing = Outgoing()


class Wire:
    """Pumps, and notes what the rotation asks for in between."""

    def __init__(self) -> None:
        self.rotation: Rotation[Lane] = Rotation()
        self.parts: list[bytes | memoryview] = []
        self.notes: list[tuple[str, int]] = []

    def drained(self, stream: Lane, *, ended: bool) -> None:
        self.notes.append(("drained and ended" if ended else "drained", stream.stream_id))
        stream.outgoing.ended = False

    def cut_short(self, stream: Lane) -> None:
        self.notes.append(("cut short", stream.stream_id))

    def queue(self, lane: Lane, *chunks: bytes, end: bool = False) -> None:
        for chunk in chunks:
            self.rotation.push(lane, chunk)
        lane.outgoing.ended = end
        self.rotation.schedule(lane)

    def pump(self, window: int = 1 << 30, max_frame: int = 16_384) -> list[tuple[int, bytes, bool]]:
        """Return (stream, content, end) of each frame, and check the account of what was sent."""
        sent: dict[int, int] = {}
        left = self.rotation.pump(self, self.parts, sent, window=window, max_frame_octets=max_frame)
        reader = FrameReader(server=False, max_frame_octets=1 << 24, max_block_octets=1)
        frames = list(reader.frames(settings([]) + b"".join(self.parts)))[1:]
        self.parts.clear()
        assert window - left == sum(len(content) for *_, content in frames) == sum(sent.values())
        for stream_id, octets in sent.items():
            assert octets == sum(len(content) for _, _, one, content in frames if one == stream_id)
        return [(stream_id, content, flags & 1 == 1) for _, flags, stream_id, content in frames]


def test_one_frame_a_turn() -> None:
    wire, lanes = Wire(), [Lane(1), Lane(3), Lane(5)]
    for lane, octets in zip(lanes, (25, 5, 15), strict=True):
        wire.queue(lane, bytes(octets), end=True)
    frames = wire.pump(max_frame=10)
    assert [(stream_id, len(content)) for stream_id, content, _ in frames] == [
        (1, 10),
        (3, 5),
        (5, 10),
        (1, 10),
        (5, 5),
        (1, 5),
    ]
    assert [stream_id for stream_id, _, end in frames if end] == [3, 5, 1]


def test_the_turn_is_kept_while_the_connection_waits() -> None:
    wire, lanes = Wire(), [Lane(1), Lane(3), Lane(5)]
    for lane in lanes:
        wire.queue(lane, bytes(30))
    turns = [stream_id for _ in range(9) for stream_id, _, _ in wire.pump(window=10)]
    assert turns == [1, 3, 5] * 3


def test_a_stream_is_taken_up_once_however_often_it_is_scheduled() -> None:
    wire, lane = Wire(), Lane(1)
    for _ in range(5):
        wire.queue(lane, b"x")
    assert wire.pump() == [(1, b"xxxxx", False)]
    assert wire.notes == [("drained", 1)]


def test_a_closed_window_takes_its_stream_out_of_the_rotation() -> None:
    wire, shut, half = Wire(), Lane(1, window=0), Lane(3, window=4)
    wire.queue(shut, b"waiting")
    assert not wire.rotation.can_send(1)
    wire.queue(half, b"waiting")
    assert wire.rotation.can_send(1)
    assert wire.pump() == [(3, b"wait", False)]
    assert not wire.rotation.can_send(1)
    assert wire.pump() == []
    for lane in (shut, half):
        lane.outbound_flow_control_window += 100
        wire.rotation.schedule(lane)
    assert wire.pump() == [(1, b"waiting", False), (3, b"ing", False)]


def test_a_window_that_shut_while_its_stream_waited_for_a_turn() -> None:
    wire, lane = Wire(), Lane(1)
    wire.queue(lane, b"content")
    lane.outbound_flow_control_window = -5
    assert wire.pump() == []
    lane.outbound_flow_control_window = 5
    wire.rotation.schedule(lane)
    assert wire.pump() == [(1, b"conte", False)]


def test_an_end_alone_passes_a_closed_connection() -> None:
    wire, lane = Wire(), Lane(1, window=0)
    wire.queue(lane, end=True)
    assert wire.rotation.can_send(0)
    assert wire.pump(window=0) == []
    assert wire.notes == [("drained", 1)]


def test_trailers_keep_the_end_off_the_content() -> None:
    wire, lane = Wire(), Lane(1)
    lane.outgoing.trailers = [(b"x", b"y", False)]
    wire.queue(lane, b"content", end=True)
    assert wire.pump() == [(1, b"content", False)]
    assert wire.notes == [("drained", 1)]


def test_a_doomed_stream_sends_what_fits_first() -> None:
    wire, lane = Wire(), Lane(1, window=4)
    wire.queue(lane, b"content")
    wire.rotation.doom(lane)
    assert wire.pump() == [(1, b"cont", False)]
    assert wire.notes == [("cut short", 1)]
    assert wire.pump() == []
    assert wire.notes == [("cut short", 1)]


def test_what_is_dropped_is_neither_sent_nor_counted() -> None:
    wire, lane, other = Wire(), Lane(1), Lane(3)
    wire.queue(lane, b"content", b"more", end=True)
    wire.queue(other, b"stays")
    assert wire.rotation.octets == 16
    wire.rotation.drop(lane)
    assert wire.rotation.octets == 5
    assert wire.pump() == [(3, b"stays", False)]
    assert wire.rotation.octets == 0


def test_a_rotation_that_was_cleared_is_empty() -> None:
    wire = Wire()
    wire.queue(Lane(1), b"content")
    wire.queue(Lane(3), end=True)
    wire.rotation.doom(Lane(5))
    wire.rotation.clear()
    assert not wire.rotation.can_send(1)
    assert wire.rotation.octets == 0
    assert wire.pump() == []
    assert wire.notes == []


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=30)), max_size=30), st.integers(1, 40), st.integers(1, 40)
)
def test_content_leaves_in_order_and_whole(queued: list[tuple[int, bytes]], window: int, max_frame: int) -> None:
    wire, lanes = Wire(), [Lane(number) for number in (1, 3, 5, 7)]
    expected = {lane.stream_id: b"" for lane in lanes}
    for number, content in queued:
        wire.queue(lanes[number], content)
        expected[lanes[number].stream_id] += content
    arrived = dict.fromkeys(expected, b"")
    while wire.rotation.octets:
        for stream_id, content, end in wire.pump(window=window, max_frame=max_frame):
            assert 0 < len(content) <= max_frame
            assert not end
            arrived[stream_id] += content
    assert arrived == expected

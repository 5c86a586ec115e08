from __future__ import annotations

import itertools

from hyperframe.frame import Frame as ReadByHyperframe
from hyperframe.frame import SettingsFrame, WindowUpdateFrame
from hypothesis import given
from hypothesis import strategies as st

from tests.load import frames
from tests.load.frames import Frame, FrameReader

any_frame = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**31 - 1),
    st.one_of(st.binary(max_size=40), st.integers(65_530, 65_540).map(bytes)),
)


@given(sent=st.lists(any_frame, max_size=5), cuts=st.lists(st.integers(0, 200_000), max_size=6))
def test_frames_are_read_as_written_in_any_fragmentation(sent: list[Frame], cuts: list[int]) -> None:
    whole = b"".join(frames.frame(*one) for one in sent)
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    reader = FrameReader()
    read = [one for start, end in itertools.pairwise(edges) for one in reader.feed(whole[start:end])]
    assert read == sent


def test_settings_and_window_updates_are_read_correctly_by_hyperframe() -> None:
    made = frames.settings(max_concurrent_streams=100, initial_window_size=1 << 20)
    settings, length = ReadByHyperframe.parse_frame_header(memoryview(made[:9]))
    settings.parse_body(memoryview(made[9 : 9 + length]))
    assert isinstance(settings, SettingsFrame)
    assert settings.settings == {3: 100, 4: 1 << 20}
    made = frames.window_update(7, 4096)
    update, length = ReadByHyperframe.parse_frame_header(memoryview(made[:9]))
    update.parse_body(memoryview(made[9 : 9 + length]))
    assert isinstance(update, WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (7, 4096)


def test_settings_and_pings_are_acknowledged_once() -> None:
    assert frames.acknowledgement(Frame(frames.SETTINGS, 0, 0, b"")) == frames.frame(frames.SETTINGS, frames.ACK, 0)
    ping = frames.acknowledgement(Frame(frames.PING, 0, 0, b"12345678"))
    assert ping == frames.frame(frames.PING, frames.ACK, 0, b"12345678")
    assert frames.acknowledgement(Frame(frames.SETTINGS, frames.ACK, 0, b"")) == b""
    assert frames.acknowledgement(Frame(frames.PING, frames.ACK, 0, b"12345678")) == b""
    assert frames.acknowledgement(Frame(frames.DATA, 0, 1, b"x")) == b""


def test_padding_and_priority_are_not_content() -> None:
    assert frames.content(Frame(frames.DATA, frames.PADDED, 1, b"\x02hello\0\0")) == b"hello"
    padded = Frame(frames.HEADERS, frames.PADDED | frames.PRIORITY, 1, b"\x01" + b"12345" + b"\x88" + b"\0")
    assert frames.content(padded) == b"\x88"
    assert frames.content(Frame(frames.HEADERS, 0, 1, b"\x88")) == b"\x88"

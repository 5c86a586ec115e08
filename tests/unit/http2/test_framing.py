from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from proxy.http2 import framing
from proxy.http2.framing import ConnectionFault, FrameReader

OPENING = SettingsFrame().serialize()


def reader(*, server: bool = False, max_frame_octets: int = 16_384, max_block_octets: int = 65_536) -> FrameReader:
    return FrameReader(server=server, max_frame_octets=max_frame_octets, max_block_octets=max_block_octets)


def parsed(data: bytes) -> Frame:
    frame, length = Frame.parse_frame_header(memoryview(data[:9]))
    assert len(data) == 9 + length
    frame.parse_body(memoryview(data[9:]))
    return frame


def test_frames_come_out_as_they_went_in() -> None:
    data = (
        OPENING
        + DataFrame(5, b"abc", flags=["END_STREAM"]).serialize()
        + PingFrame(opaque_data=b"12345678").serialize()
    )
    assert list(reader().frames(data)) == [
        (framing.SETTINGS, 0, 0, b""),
        (framing.DATA, framing.END_STREAM, 5, b"abc"),
        (framing.PING, 0, 0, b"12345678"),
    ]


def test_the_reserved_bit_of_a_stream_id_is_ignored() -> None:
    frames = list(reader().frames(OPENING + b"\0\0\1\0\0\x80\0\0\x05x"))
    assert frames[1] == (framing.DATA, 0, 5, b"x")


def test_a_frame_in_pieces_comes_out_once_and_whole() -> None:
    cut = reader()
    assert list(cut.frames(OPENING)) == [(framing.SETTINGS, 0, 0, b"")]
    data = DataFrame(1, bytes(1_000)).serialize()
    for octet in data[:-1]:
        assert list(cut.frames(bytes((octet,)))) == []
    assert list(cut.frames(data[-1:] + data[:5])) == [(framing.DATA, 0, 1, bytes(1_000))]
    assert list(cut.frames(data[5:])) == [(framing.DATA, 0, 1, bytes(1_000))]


def test_frames_before_a_fault_come_out() -> None:
    frames = reader().frames(OPENING + DataFrame(1, b"x").serialize() + b"\xff\xff\xff\0\0\0\0\0\1")
    assert next(frames)[0] == framing.SETTINGS
    assert next(frames)[0] == framing.DATA
    with pytest.raises(ConnectionFault, match="longer") as raised:
        next(frames)
    assert raised.value.code == 6


def test_the_preface_may_come_in_pieces_and_is_refused_at_the_first_wrong_octet() -> None:
    cut = reader(server=True)
    assert list(cut.frames(framing.PREFACE[:10])) == []
    assert list(cut.frames(framing.PREFACE[10:] + OPENING)) == [(framing.SETTINGS, 0, 0, b"")]
    with pytest.raises(ConnectionFault, match="preface"):
        list(reader(server=True).frames(b"G"))


def test_one_legal_frame_is_the_most_that_is_held_back() -> None:
    cut = reader(max_frame_octets=16_384)
    list(cut.frames(OPENING))
    with pytest.raises(ConnectionFault, match="longer"):
        list(cut.frames(b"\0\x40\x01\0\0\0\0\0\1"))


@pytest.mark.parametrize("octets", [0, 1, 16_384, 16_385, 40_000])
def test_field_blocks_are_cut_to_frames_and_joined_again(octets: int) -> None:
    block = bytes(range(256)) * (octets // 256 + 1)
    data = framing.headers(7, block[:octets], end_stream=True, max_frame_octets=16_384)
    *_, frame = reader().frames(OPENING + data)
    assert frame == (framing.HEADERS, framing.END_STREAM | framing.END_HEADERS, 7, block[:octets])


def test_padding_is_taken_off() -> None:
    frame = DataFrame(1, b"content", flags=["PADDED"])
    frame.pad_length = 3
    assert framing.unpadded(frame.serialize()[9:]) == b"content"
    assert framing.unpadded(b"\0") == b""


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abcd"])
def test_padding_longer_than_its_frame_is_a_fault(payload: bytes) -> None:
    with pytest.raises(ConnectionFault):
        framing.unpadded(payload)


def test_settings_keep_their_order_and_repetitions() -> None:
    pairs = [(4, 1), (1, 0), (4, 2)]
    assert list(framing.settings_pairs(framing.settings(pairs)[9:])) == pairs


def test_what_we_build_is_what_others_read() -> None:
    data = parsed(framing.data_header(3, 3, end_stream=True) + b"abc")
    assert isinstance(data, DataFrame)
    assert (data.stream_id, data.data, set(data.flags)) == (3, b"abc", {"END_STREAM"})
    head = parsed(framing.headers(9, b"\x82", end_stream=False, max_frame_octets=16_384))
    assert isinstance(head, HeadersFrame)
    assert (head.stream_id, head.data, set(head.flags)) == (9, b"\x82", {"END_HEADERS"})
    reset = parsed(framing.rst_stream(3, 0xFFFF_FFFF))
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (3, 0xFFFF_FFFF)
    gone = parsed(framing.go_away(11, 2, b"why"))
    assert isinstance(gone, GoAwayFrame)
    assert (gone.last_stream_id, gone.error_code, gone.additional_data) == (11, 2, b"why")
    settings = parsed(framing.SETTINGS_ACK)
    assert set(settings.flags) == {"ACK"}


def test_great_frames_have_their_length_in_three_octets() -> None:
    assert framing.data_header(1, (1 << 24) - 1, end_stream=False)[:3] == b"\xff\xff\xff"

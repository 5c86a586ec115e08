from __future__ import annotations

from collections.abc import Iterable

import hpack
import pytest
from hpack.exceptions import HPACKError
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http2.compression import CompressionFault, FieldDecoder, FieldEncoder
from proxy.http2.events import Field, Fields
from proxy.http2.huffman import huffman_decoder

STATIC = HeaderTable.STATIC_TABLE
HUFFMAN = huffman_decoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

NAMES = st.sampled_from([b":method", b":path", b"accept", b"x-a", b"x-b", b"cookie", b"x-" + b"long" * 40])
VALUES = st.one_of(
    st.sampled_from([b"", b"GET", b"/", b"same", b"t" * 900, b"u" * 3_000, b"v" * 5_000]), st.binary(max_size=20)
)
SECTION = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=12)
RESIZE = st.integers(0, 9_000)


def decoder(limit: int = 1 << 20) -> FieldDecoder:
    return FieldDecoder(STATIC, HUFFMAN, max_section_octets=limit)


def by_hpack(reader: hpack.Decoder, block: bytes) -> Fields:
    return [(bytes(line[0]), bytes(line[1]), not line.indexable) for line in reader.decode(block, raw=True)]


def entries(reader: hpack.Decoder) -> int:
    return len(reader.header_table.dynamic_entries)


def line(name: bytes, value: bytes) -> Field:
    return name, value, False


# ---- against hpack


@given(st.lists(st.one_of(SECTION, RESIZE), max_size=20))
@settings(max_examples=200, deadline=None)
def test_hpack_reads_what_we_encode(steps: list[Fields | int]) -> None:
    writer, reader = FieldEncoder(STATIC), hpack.Decoder(max_header_list_size=1 << 24)
    for step in steps:
        if isinstance(step, int):
            writer.header_table_size = reader.max_allowed_table_size = step
        else:
            assert by_hpack(reader, writer.encode(step)) == step


@given(st.lists(st.tuples(SECTION, st.none() | RESIZE), max_size=20), st.booleans())
@settings(max_examples=200, deadline=None)
def test_we_read_what_hpack_encodes(steps: list[tuple[Fields, int | None]], huffman: bool) -> None:
    writer, reader = hpack.Encoder(), decoder()
    reader.max_allowed_table_size = 9_000
    for section, resize in steps:
        # One change a section: of several that end where they began, hpack tells none.
        if resize is not None:
            writer.header_table_size = resize
        read = reader.decode(writer.encode(section, huffman=huffman))
        assert read is not None
        # Names and values: hpack sends an index, and no mark, for a sensitive line that its table happens to hold.
        assert [field[:2] for field in read] == [field[:2] for field in section]


@given(st.lists(st.binary(max_size=40), max_size=6))
@settings(max_examples=400, deadline=None)
def test_any_octets_mean_what_they_mean_to_hpack(blocks: list[bytes]) -> None:
    ours, theirs = decoder(), hpack.Decoder(max_header_list_size=1 << 24)
    for block in blocks:
        try:
            expected = by_hpack(theirs, block)
        except HPACKError:
            with pytest.raises(CompressionFault):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


# ---- what the encoder decides


def sizes(writer: FieldEncoder, sections: Iterable[Fields]) -> list[int]:
    return [len(writer.encode(section)) for section in sections]


def test_a_line_enters_the_table_the_second_time_it_is_sent() -> None:
    writer, reader = FieldEncoder(STATIC), hpack.Decoder()
    token = [line(b"x-token", b"t" * 800)]
    by_hpack(reader, writer.encode(token))
    assert entries(reader) == 0
    by_hpack(reader, writer.encode(token))
    assert entries(reader) == 1
    assert len(writer.encode(token)) == 1


def test_lines_that_differ_every_time_push_nothing_out() -> None:
    writer = FieldEncoder(STATIC)
    lasting = line(b"x-token", b"t" * 800)
    lengths = sizes(writer, ([lasting, line(b"traceparent", b"%060d" % number)] for number in range(500)))
    assert lengths[-1] < 80


def test_lines_that_no_longer_fit_leave_the_table_in_their_order() -> None:
    writer, reader = FieldEncoder(STATIC), hpack.Decoder()
    for number in range(200):
        section = [line(b"x-%d" % (number % 7), b"%0300d" % number), line(b"x-lasting", b"y")]
        for _ in range(3):
            assert by_hpack(reader, writer.encode(section)) == section
    assert entries(reader) == 13  # 4,096 octets hold twelve of the long ones and the short one


def test_what_is_remembered_for_a_second_time_is_bounded() -> None:
    writer, reader = FieldEncoder(STATIC), hpack.Decoder()
    first = [line(b"x-n", b"first")]
    by_hpack(reader, writer.encode(first))
    for number in range(256):
        by_hpack(reader, writer.encode([line(b"x-n", b"%d" % number)]))
    by_hpack(reader, writer.encode(first))
    assert entries(reader) == 0


def test_a_line_of_more_than_half_the_table_does_not_enter_it() -> None:
    writer, reader = FieldEncoder(STATIC), hpack.Decoder()
    for _ in range(3):
        by_hpack(reader, writer.encode([line(b"x", b"y" * 2_040)]))
    assert entries(reader) == 0


def test_a_never_indexed_line_is_a_literal_even_where_a_table_holds_it() -> None:
    writer, reader = FieldEncoder(STATIC), hpack.Decoder()
    for _ in range(3):
        by_hpack(reader, writer.encode([line(b"x-secret", b"value")]))
    secret: Fields = [(b"x-secret", b"value", True), (b":method", b"GET", True)]
    block = writer.encode(secret)
    assert block[0] & 0xF0 == 0x10
    assert by_hpack(reader, block) == secret
    assert entries(reader) == 1


def test_the_table_is_ours_to_bound_whatever_the_peer_allows() -> None:
    writer = FieldEncoder(STATIC)
    writer.header_table_size = (1 << 32) - 1
    assert writer.header_table_size == 16_384
    reader = hpack.Decoder()
    reader.max_allowed_table_size = (1 << 32) - 1
    by_hpack(reader, writer.encode([line(b"a", b"b")]))
    assert reader.header_table_size == 16_384


def test_the_smallest_of_several_table_sizes_is_told() -> None:
    writer, reader = FieldEncoder(STATIC), hpack.Decoder()
    for _ in range(3):
        by_hpack(reader, writer.encode([line(b"x", b"y")]))
    assert entries(reader) == 1
    for octets in (1_000, 0, 2_000, 4_096):
        writer.header_table_size = octets
    by_hpack(reader, writer.encode([]))
    assert entries(reader) == 0
    assert reader.header_table_size == 4_096


def test_a_table_size_that_does_not_change_is_not_told() -> None:
    writer = FieldEncoder(STATIC)
    writer.header_table_size = 4_096
    assert writer.encode([]) == b""


# ---- limits of the decoder


def test_a_section_over_the_limit_is_none_and_the_table_stays_in_step() -> None:
    writer, reader = hpack.Encoder(), decoder(limit=100)
    assert reader.decode(writer.encode([(b"x-new", b"y" * 100)])) is None
    again = writer.encode([(b"x-new", b"y" * 100)])
    assert len(again) == 1
    reader.max_header_list_size = 1_000
    assert reader.decode(again) == [line(b"x-new", b"y" * 100)]


def test_a_section_at_the_limit_is_taken() -> None:
    block = hpack.Encoder().encode([(b"x", b"y" * 67)])
    assert decoder(limit=100).decode(block) == [line(b"x", b"y" * 67)]
    assert decoder(limit=99).decode(block) is None


def test_a_block_far_over_the_limit_is_not_decoded_to_its_end() -> None:
    reader = decoder(limit=8_192)
    reader.decode(hpack.Encoder().encode([(b"x", b"y" * 4_000)]))
    with pytest.raises(CompressionFault, match="far greater"):
        reader.decode(b"\xbe" * 100_000)


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xbe",
        b"\x7f",
        b"\x40",
        b"\x40\x01",
        b"\x40\x01a\x05b",
        b"\x82\x3f\xe1\x1f",
        b"\x3f\xe2\x1f",
        b"\xff" * 9,
    ],
)
def test_blocks_that_are_not_well_formed_are_faults(block: bytes) -> None:
    with pytest.raises(CompressionFault):
        decoder().decode(block)

"""Field blocks: how they are cut into frames and compressed (RFC 9113, 4.3 and 6.10; RFC 7541)."""

from __future__ import annotations

import pytest
from hpack.hpack import decode_integer
from hyperframe.frame import HeadersFrame

from proxy.http2.engine import Limits
from proxy.http2.events import FieldLine
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import HeadReceived, SettingsReceived
from tests.support.peers.memory import Joined
from tests.support.peers.raw import REQUEST, RESPONSE, RawPeer, assert_connection_failed, line, of


@each_engine
def test_the_same_head_crosses_however_often_it_is_sent(make: EventFactory) -> None:
    joined = Joined(make)
    for number in range(50):
        head = [*REQUEST, line(b"x-token", b"t" * 900), line(b"traceparent", b"%032d" % number)]
        stream_id = joined.client.engine.send_request(head, end_stream=True)
        joined.run()
        assert joined.server.events[-1] == HeadReceived(stream_id, head, True)
        joined.server.engine.send_head(stream_id, RESPONSE, end_stream=True)
        joined.run()


@each_engine
def test_never_indexed_fields_are_reported_as_such(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    block = peer.encoder.encode([*((n, v) for n, v, _ in REQUEST), (b"authorization", b"secret", True)])
    (event,) = peer.send(HeadersFrame(1, block, flags=["END_HEADERS"]))
    assert event == HeadReceived(1, [*REQUEST, (b"authorization", b"secret", True)], False)


@each_engine
@pytest.mark.parametrize(
    "field",
    [
        (b"authorization", b"secret", True),
        (b"x-unheard-of", b"secret", True),
        (b"x-indexed-before", b"secret", True),
        (b"accept-encoding", b"gzip, deflate", True),
    ],
    ids=["static name", "new name", "line in the dynamic table", "line in the static table"],
)
def test_never_indexed_fields_leave_as_never_indexed_literals(make: EventFactory, field: FieldLine) -> None:
    peer = RawPeer(make, engine_is_client=True)
    for _ in range(4):
        peer.asked([*REQUEST, line(b"x-indexed-before", b"secret")])
    peer.engine.send_request([*REQUEST, field], end_stream=True)
    (head,) = of(peer.take(), "Headers")
    assert head.fields == [*REQUEST, field]


def literal(name_index: int, value: bytes, *, never: bool = False) -> bytes:
    """A line whose name is in a table and whose value is in none (RFC 7541, 6.2.2 and 6.2.3)."""
    pattern = 0x10 if never else 0x00
    name = bytes([pattern | name_index]) if name_index < 15 else bytes([pattern | 15, name_index - 15])
    return name + bytes([len(value)]) + value


@each_engine
@pytest.mark.parametrize("name_index", [4, 17, 62], ids=["path", "static name", "name in the dynamic table"])
def test_lines_that_their_sender_does_not_index_arrive_unchanged(make: EventFactory, name_index: int) -> None:
    peer = RawPeer(make, engine_is_client=False)
    stream_id = 1
    peer.send(HeadersFrame(stream_id, b"\x83\x86\x41\x01a\x44\x02/x\x40\x03x-a\x01a", flags=["END_HEADERS"]))
    name = {4: b":path", 17: b"accept-language", 62: b"x-a"}[name_index]
    for value in (b"/a", b"/a", b"/b", b"/ab", b"/a", b"/a"):
        for never in (False, False, True, True, False):
            stream_id += 2
            rest = b"" if name_index == 4 else b"\x84"
            block = b"\x83\x86" + literal(1, b"a") + rest + literal(name_index, value, never=never)
            (event,) = peer.send(HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"]))
            assert isinstance(event, HeadReceived)
            assert event.fields[-1] == (name, value, never)


@each_engine
def test_field_blocks_may_come_in_pieces(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    frames = peer.split_headers(1, REQUEST, [0, 1, 10, 0, 3], end=True)
    assert peer.send(*frames[:-1]) == []
    assert peer.send(frames[-1]) == [HeadReceived(1, REQUEST, True)]


@each_engine
def test_padding_and_priority_of_a_head_are_not_part_of_its_fields(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    frame = HeadersFrame(
        1, peer.block(REQUEST), flags=["PADDED", "PRIORITY", "END_HEADERS"], pad_length=200, stream_weight=9
    )
    assert peer.send(frame) == [HeadReceived(1, REQUEST, False)]


@each_engine
def test_priority_frames_change_nothing(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    assert peer.send(peer.priority(1), peer.priority(3)) == []
    assert peer.open(1) == [HeadReceived(1, REQUEST, False)]
    assert peer.send(peer.priority(1)) == []


@each_engine
@pytest.mark.parametrize("max_frame", [16_384, 20_000])
def test_a_long_head_is_split_at_the_peers_maximum_frame_size(make: EventFactory, max_frame: int) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={5: max_frame})
    long = [*REQUEST, *(line(b"x-%d" % number, bytes(b"\xfe" * 9_000)) for number in range(5))]
    peer.engine.send_request(long, end_stream=True)
    (head,) = peer.take()
    assert head.fields == long
    assert head.ends
    assert len(head.fragments) > 1
    assert all(16_384 <= octets <= max_frame for octets in head.fragments[:-1])


@each_engine
def test_the_peers_table_size_is_respected(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    for size in (0, 100, 4_096, 65_536, 1 << 30):
        peer.send(peer.settings({1: size}))
        peer.decoder.max_allowed_table_size = size
        for _ in range(3):
            peer.engine.send_request([*REQUEST, line(b"x-again", b"and again")], end_stream=True)
            (head,) = of(peer.take(), "Headers")
            assert head.fields == [*REQUEST, line(b"x-again", b"and again")]
        assert peer.decoder.header_table_size <= size


@each_engine
def test_a_table_that_shrank_and_grew_again_is_empty(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    head = [*REQUEST, line(b"x-again", b"and again")]
    for _ in range(3):
        peer.engine.send_request(head, end_stream=True)
        peer.take()
    peer.send(peer.settings({1: 0}), peer.settings({1: 4_096}))
    for _ in range(3):
        peer.engine.send_request(head, end_stream=True)
        (seen,) = of(peer.take(), "Headers")
        assert seen.fields == head


@each_engine
@pytest.mark.parametrize("sizes", [[100, 100], [200, 100, 200], [0, 4_096], [300, 200, 100], [50, 4_096, 4_096]])
def test_changed_table_sizes_are_signalled_in_the_next_block(make: EventFactory, sizes: list[int]) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={3: 1_000})
    head = [*REQUEST, line(b"x-again", b"and again")]
    for _ in range(3):
        peer.asked(head, end=True)
    peer.send(*[peer.settings({1: size}) for size in sizes])
    peer.decoder.max_allowed_table_size = sizes[-1]
    updates: list[int] = []
    for _ in range(3):
        peer.engine.send_request(head, end_stream=True)
        (seen,) = of(peer.take(), "Headers")
        assert seen.fields == head
        updates += table_updates(seen.body)
    assert updates == ([min(sizes), sizes[-1]] if min(sizes) < sizes[-1] else [sizes[-1]])
    assert peer.decoder.header_table_size == sizes[-1]


def table_updates(block: bytes) -> list[int]:
    """Read the updates that a block begins with (RFC 7541, 6.3)."""
    updates: list[int] = []
    while block[0] & 0xE0 == 0x20:
        octets, count = decode_integer(block, 5)
        updates.append(octets)
        block = block[count:]
    return updates


@each_engine
def test_settings_of_one_frame_are_applied_in_their_order(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={3: 1_000})
    pairs = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in ((1, 64), (1, 4_096)))
    assert peer.send(b"\0\0\x0c\x04\0\0\0\0\0" + pairs) == [SettingsReceived()]
    assert [one.flags for one in of(peer.take(), "Settings")] == [{"ACK"}]
    peer.engine.send_request(REQUEST, end_stream=True)
    (head,) = of(peer.take(), "Headers")
    assert table_updates(head.body) == [64, 4_096]


@each_engine
def test_a_line_that_was_evicted_from_the_table_can_be_sent_again(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    heads = [[*REQUEST, line(b"x-number", b"%02d" % number * 300)] for number in range(20)]
    for head in [head for head in heads for _ in range(3)] * 2:
        peer.engine.send_request(head, end_stream=True)
        (seen,) = of(peer.take(), "Headers")
        assert seen.fields == head


@each_engine
@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff\xff\xff\xff\xff\x7f",
        b"\x40\x05ab",
        b"\xbf",
        b"\x3f\xff\xff\x7f",
        b"\x82\x20",
        b"\x40\x81\x00\x00",
    ],
    ids=["index 0", "endless integer", "truncated", "no such index", "table too large", "late update", "bad padding"],
)
def test_blocks_that_cannot_be_decoded_end_the_connection(make: EventFactory, block: bytes) -> None:
    peer = RawPeer(make, engine_is_client=False)
    assert_connection_failed(peer, peer.send(HeadersFrame(1, block, flags=["END_HEADERS"])), 9)


@each_engine
def test_refused_sections_do_not_break_the_compression_state(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_field_section_octets=2_000))
    new = line(b"x-new", b"entered in a refused section")
    peer.send(peer.headers(1, [*REQUEST[:4], new, line(b"Upper", b"case")]))
    peer.open(3)
    peer.engine.reset(3, 8)
    peer.take()
    peer.send(peer.headers(3, [line(b"x-late", b"trailers of a stream we reset")], end=True))
    head = [*REQUEST, new, line(b"x-late", b"trailers of a stream we reset")]
    assert peer.open(5, head) == [HeadReceived(5, head, False)]


@each_engine
def test_a_field_block_that_has_begun_is_reported_until_its_end(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    engine = peer.engine.engine
    assert engine.unfinished_block() == 0
    first, *rest = peer.split_headers(1, REQUEST, [2, 1, 3], end=True)
    peer.send(first)
    assert engine.unfinished_block() == 1
    for frame in rest[:-1]:
        peer.send(frame)
        assert engine.unfinished_block() == 1
    peer.send(rest[-1])
    assert engine.unfinished_block() == 0
    octets = peer.headers(3, REQUEST).serialize()
    peer.send(octets[:8])
    assert engine.unfinished_block() == 0
    peer.send(octets[8:-1])
    assert engine.unfinished_block() == 3
    peer.send(octets[-1:])
    assert engine.unfinished_block() == 0
    peer.send(peer.data(3, b"content").serialize()[:-1])
    assert engine.unfinished_block() == 0


@each_engine
def test_no_field_block_is_unfinished_while_a_frame_that_is_whole_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    seen: list[int] = []
    peer.engine.handler.react = lambda _: seen.append(peer.engine.engine.unfinished_block())
    peer.send(peer.headers(1, REQUEST), peer.data(1, b"content"), peer.data(1, end=True))
    assert seen == [0, 0, 0]

"""Random traffic: valid or nearly valid, then mutated as frames and as octets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import hpack

from proxy.http2.engine import Limits
from proxy.http2.events import FieldLine, Fields, StreamId
from tests.support.peers.raw import PREFACE, REQUEST, TRAILERS

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8
NUMBERS = (0, 1, 2, 9, 255, 16_383, 16_384, 65_535, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
NAMES = (b"x-a", b"accept", b"cookie", b"authorization", b"content-length", b"te", b"host", b":path", b":x", b"X", b"")
VALUES = (b"", b"1", b"x" * 300, b"trailers", b" ", b"a\nb", b"\xff", b"y" * 5_000)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, stream and payload of whole frames; whatever an engine sends must be such."""
    place = 0
    while place < len(data):
        assert len(data) - place >= 9, "a frame header is cut off"
        length = int.from_bytes(data[place : place + 3], "big")
        end = place + 9 + length
        assert end <= len(data), "a frame is cut off"
        yield (
            data[place + 3],
            data[place + 4],
            int.from_bytes(data[place + 5 : place + 9], "big"),
            data[place + 9 : end],
        )
        place = end


@dataclass
class Lane:
    """A stream as its sender sees it."""

    stream_id: StreamId
    head: bool = False
    ended: bool = False
    room: int = 0


class Peer:
    """Makes what the other side of the engine might send: valid at first, then mutated."""

    def __init__(self, rng: Random, limits: Limits, requests: list[StreamId]) -> None:
        self.rng = rng
        self.limits = limits
        self.is_server = bool(requests)
        self.encoder = hpack.Encoder()
        self.lanes = [Lane(stream_id, room=limits.stream_window_octets) for stream_id in requests]
        self.room = limits.connection_window_octets
        self.careless = rng.random() < 0.2

    def traffic(self) -> list[bytes]:
        """Return the frames of a connection that breaks no rule, or, where the peer is careless, not many."""
        rng = self.rng
        made = [self.settings({rng.choice((1, 3, 4, 5, 6)): self.number() for _ in range(rng.randrange(4))})]
        made.append(frame(SETTINGS, 1, 0))
        for _ in range(rng.randrange(1, 30)):
            made += rng.choice((self.head, self.head, self.data, self.data, self.data, self.end, self.other))()
        return made

    def number(self) -> int:
        return self.rng.choice(NUMBERS if self.careless else (16_384, 20_000, 65_535, 100_000))

    def settings(self, settings: dict[int, int]) -> bytes:
        pairs = (key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in settings.items())
        return frame(SETTINGS, 0, 0, b"".join(pairs))

    def fields(self, fields: Fields) -> Fields:
        rng = self.rng
        extra: list[FieldLine] = [
            (rng.choice(NAMES[:4]), rng.choice(VALUES[:4]), rng.random() < 0.2) for _ in range(rng.randrange(4))
        ]
        if rng.random() < (0.3 if self.careless else 0.05):
            extra.append((rng.choice(NAMES), rng.choice(VALUES), False))
        return [*fields, *extra]

    def section(self, lane: Lane, fields: Fields, *, end: bool) -> list[bytes]:
        rng = self.rng
        lane.ended = end
        block = self.encoder.encode(fields, huffman=rng.random() < 0.5)
        flags = END_STREAM if end else 0
        if rng.random() < 0.8:
            return [frame(HEADERS, flags | END_HEADERS, lane.stream_id, block)]
        cut = rng.randrange(len(block) + 1)
        return [
            frame(HEADERS, flags, lane.stream_id, block[:cut]),
            frame(CONTINUATION, END_HEADERS, lane.stream_id, block[cut:]),
        ]

    def head(self) -> list[bytes]:
        rng = self.rng
        if not self.is_server:
            last = self.lanes[-1].stream_id if self.lanes else -1
            lane = Lane(last + 2, head=True, room=self.limits.stream_window_octets)
            self.lanes.append(lane)
            return self.section(lane, self.fields(REQUEST), end=rng.random() < 0.2)
        waiting = [lane for lane in self.lanes if not (lane.head or lane.ended)]
        if not waiting:
            return []
        lane = rng.choice(waiting)
        lane.head = rng.random() < 0.8
        status = b"200" if lane.head else b"103"
        return self.section(lane, self.fields([(b":status", status, False)]), end=lane.head and rng.random() < 0.2)

    def open_lane(self) -> Lane | None:
        lanes = self.lanes if self.careless else [lane for lane in self.lanes if lane.head and not lane.ended]
        return self.rng.choice(lanes) if lanes else None

    def data(self) -> list[bytes]:
        rng = self.rng
        lane = self.open_lane()
        if lane is None:
            return []
        octets = rng.choice((0, 1, 100, 5_000, 16_000))
        padding = rng.randrange(256) if rng.random() < 0.2 else -1
        if not self.careless:
            octets = max(0, min(octets, lane.room - padding - 1, self.room - padding - 1))
        lane.room -= octets + padding + 1
        self.room -= octets + padding + 1
        if padding < 0:
            return [frame(DATA, 0, lane.stream_id, bytes(octets))]
        return [frame(DATA, PADDED, lane.stream_id, bytes((padding,)) + bytes(octets + padding))]

    def end(self) -> list[bytes]:
        lane = self.open_lane()
        if lane is None:
            return []
        if self.rng.random() < 0.4:
            return self.section(lane, TRAILERS if self.rng.random() < 0.8 else [], end=True)
        lane.ended = True
        return [frame(DATA, END_STREAM, lane.stream_id)]

    def other(self) -> list[bytes]:
        rng = self.rng
        lane = rng.choice(self.lanes) if self.lanes else Lane(0)
        stream_id = lane.stream_id
        kind = rng.randrange(9)
        if kind == 0 and stream_id:
            lane.ended = lane.head = True
            return [frame(RST_STREAM, 0, stream_id, rng.choice(NUMBERS).to_bytes(4, "big"))]
        updated = rng.choice((0, stream_id))
        increment = rng.choice(NUMBERS if self.careless else (1, 1_000, 65_535))
        return [
            (
                frame(PING, 0, 0, bytes(8)),
                frame(WINDOW_UPDATE, 0, updated, increment.to_bytes(4, "big")),
                frame(WINDOW_UPDATE, 0, updated, (1_000).to_bytes(4, "big")),
                frame(PING, 1, 0, bytes(8)),
                frame(PRIORITY, 0, stream_id or 3, bytes(4) + b"\1"),
                frame(GOAWAY, 0, 0, rng.choice(NUMBERS).to_bytes(4, "big") + bytes(4) + b"bye"),
                frame(rng.randrange(10, 256), rng.randrange(256), stream_id, b"what"),
                self.settings({rng.choice((1, 3, 4, 5, 6, 7)): self.number()}),
                frame(WINDOW_UPDATE, 0, 0, (100_000).to_bytes(4, "big")),
            )[kind]
        ]

    def mutated(self, made: list[bytes]) -> bytes:
        """Return the frames as octets, changed in a few places."""
        changed = mutate(self.rng, made)
        data = (b"" if self.is_server else PREFACE) + b"".join(changed)
        if self.rng.random() < 0.1:
            place = self.rng.randrange(len(data) + 1)
            data = data[:place] + self.rng.randbytes(self.rng.randrange(40)) + data[place + self.rng.randrange(3) :]
        return data


def mutate(rng: Random, made: list[bytes]) -> list[bytes]:
    """Return frames, changed in a few places or in none."""
    made = list(made)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 4)) if made else 0):
        place = rng.randrange(len(made))
        one = bytearray(made[place])
        kind = rng.randrange(8)
        if kind == 0:
            made.insert(rng.randrange(len(made)), bytes(one))
        elif kind == 1:
            del made[place]
            made.append(b"")
        elif kind == 2 and len(one) > 3:
            one[3] = rng.randrange(12)
        elif kind == 3 and len(one) > 4:
            one[4] ^= 1 << rng.randrange(8)
        elif kind == 4 and len(one) > 8:
            one[5:9] = rng.choice((0, 1, 2, 3, 5, 99, (1 << 31) - 1, (1 << 32) - 1)).to_bytes(4, "big")
        elif kind == 5 and len(one) > 2:
            one[0:3] = rng.choice((0, 1, 4, 5, 8, 16_384, 16_385, (1 << 24) - 1)).to_bytes(3, "big")
        elif one:
            for _ in range(rng.randrange(1, 4)):
                one[rng.randrange(len(one))] = rng.randrange(256)
        if kind not in (0, 1):
            made[place] = bytes(one)
    return made


def split(data: bytes) -> list[bytes]:
    """Return the frames in some octets, a preface in front of the first, and what is no whole frame as the last one."""
    found: list[bytes] = []
    place, start = (len(PREFACE), 0) if data.startswith(PREFACE) else (0, 0)
    while len(data) - place >= 9:
        end = place + 9 + int.from_bytes(data[place : place + 3], "big")
        found.append(data[start:end])
        place = start = min(end, len(data))
    return [*found, data[start:]] if start < len(data) else found

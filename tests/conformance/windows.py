"""Clients whose peer has wide windows, and the shape of the frames that they send."""

from __future__ import annotations

from tests.support.peers.engines import EventFactory
from tests.support.peers.raw import RawPeer, Seen

INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5
WIDE_WINDOWS = {INITIAL_WINDOW_SIZE: 1 << 24}
DEFAULT_WINDOW = 65_535


def client(make: EventFactory, *, streams: int = 1, settings: dict[int, int] | None = None) -> RawPeer:
    """A client engine with so many requests open and a wide connection window."""
    peer = RawPeer(make, engine_is_client=True, settings=WIDE_WINDOWS if settings is None else settings)
    peer.send(peer.window(0, (1 << 30) - DEFAULT_WINDOW))
    for _ in range(streams):
        peer.asked()
    return peer


def shape(seen: list[Seen]) -> list[tuple[str, int, int, bool]]:
    """Kind, stream, octets and end of each frame."""
    return [(one.kind, one.stream_id, len(one.body), one.ends) for one in seen]

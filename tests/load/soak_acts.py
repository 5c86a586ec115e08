"""What the clients of the soak do on a stream, and what must come of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import h2.exceptions

from tests.load.soak_upstream import SoakPeer, octets
from tests.support.peers.sockets import Reset

__all__ = ["ACTS", "Act", "Unexpected"]

_CANCEL: Final = 0x8
_INTERNAL_ERROR: Final = 0x2
_PAUSE_SECONDS: Final = 0.2
_PREFIX: Final = "/soak"


class Unexpected(Exception):
    """An exchange did not go as it must."""


Act = Callable[[SoakPeer, random.Random], Awaitable[None]]


async def unary(peer: SoakPeer, chance: random.Random) -> None:
    """Send up to 64 KiB and get them back."""
    sent = octets(chance.randint(0, 64 << 10))
    stream = await _opened(peer, f"{_PREFIX}/echo", sent)
    _same(await peer.body(stream), sent)


async def conversation(peer: SoakPeer, chance: random.Random) -> None:
    """Say something, wait for the answer, and so on, with pauses."""
    stream = peer.open(f"{_PREFIX}/echo")
    await _ok(peer, stream)
    for _ in range(chance.randint(2, 20)):
        said = octets(chance.randint(1, 2000))
        await peer.send(stream, said)
        heard = b""
        while len(heard) < len(said):
            heard += await peer.data(stream)
        _same(heard, said)
        await asyncio.sleep(chance.random() * 0.02)
    await peer.send(stream, b"", end=True)
    _same(await peer.body(stream), b"")


async def download(peer: SoakPeer, chance: random.Random) -> None:
    """Get up to a mebioctet."""
    count = chance.randint(0, 1 << 20)
    stream = await _opened(peer, f"{_PREFIX}/size/{count}")
    _same(await peer.body(stream), octets(count))


async def slow_download(peer: SoakPeer, chance: random.Random) -> None:
    """Get half a mebioctet in sips: the window is given back only after a pause."""
    count = 512 << 10
    peer.slow.add(stream := peer.open(f"{_PREFIX}/size/{count}", end=True))
    await _ok(peer, stream)
    heard = 0
    while heard < count:
        await asyncio.sleep(chance.random() * _PAUSE_SECONDS)
        peer.acknowledge(stream)
        heard += len(await peer.data(stream))
        while not peer.streams[stream].empty() and heard < count:
            heard += len(await peer.data(stream))
    peer.acknowledge(stream)
    _same(await peer.body(stream), b"")


async def early_answer(peer: SoakPeer, chance: random.Random) -> None:
    """Get a whole response before the request has ended."""
    stream = peer.open(f"{_PREFIX}/early")
    await _ok(peer, stream)
    _same(await peer.body(stream), octets(1000))
    await peer.send(stream, octets(chance.randint(0, 2000)), end=True)


async def change_of_mind(peer: SoakPeer, chance: random.Random) -> None:
    """Reset the stream at some moment: before the head, after it, in the middle of the content."""
    stream = peer.open(f"{_PREFIX}/size/{1 << 20}", end=True)
    await asyncio.sleep(chance.choice((0.0, 0.0, 0.001, 0.01)))
    with contextlib.suppress(h2.exceptions.ProtocolError):  # the response may have been faster
        peer.reset(stream, _CANCEL)


async def refusal(peer: SoakPeer, chance: random.Random) -> None:
    """Be reset by the upstream, with the code it chose."""
    code = chance.choice((_CANCEL, _INTERNAL_ERROR))
    stream = await _opened(peer, f"{_PREFIX}/reset/{code}")
    try:
        await peer.body(stream)
    except Reset as reset:
        if reset.code != code:
            raise Unexpected(f"the reset came with code {reset.code}, not {code}") from reset
    else:
        raise Unexpected("a response that the upstream reset came to a clean end")


ACTS: Final[Mapping[str, tuple[Act, int]]] = {
    "unary": (unary, 40),
    "conversation": (conversation, 20),
    "download": (download, 10),
    "slow download": (slow_download, 3),
    "early answer": (early_answer, 10),
    "change of mind": (change_of_mind, 10),
    "refusal": (refusal, 7),
}
"""By name, each with its weight in the mix."""


async def _opened(peer: SoakPeer, path: str, sent: bytes = b"") -> int:
    stream = peer.open(path, end=not sent)
    if sent:
        await peer.send(stream, sent, end=True)
    await _ok(peer, stream)
    return stream


async def _ok(peer: SoakPeer, stream: int) -> None:
    status = (await peer.head(stream))[b":status"]
    if status != b"200":
        content = await peer.body(stream)
        raise Unexpected(f"answered with {status.decode()}: {content[:200].decode(errors='replace').strip()}")


def _same(heard: bytes, said: bytes) -> None:
    if heard != said:
        raise Unexpected(f"{len(said)} octets became {len(heard)}, or others")

"""A service in a process of its own that answers 200 at once: `python -m tests.isolation.good_service`."""

from __future__ import annotations

import asyncio
import sys

from tests.support.peers.sockets import Peer, server


async def _serve(peer: Peer) -> None:
    while True:
        stream, _, _ = await peer.request()
        peer.respond(stream, 200, end=True)


async def _main() -> None:
    async with server() as listening, asyncio.TaskGroup() as tasks:
        sys.stdout.write(f"listening {listening.port}\n")
        sys.stdout.flush()
        while True:
            tasks.create_task(_serve(await listening.accepted()))


if __name__ == "__main__":
    asyncio.run(_main())

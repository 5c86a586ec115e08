"""What is left behind by very many streams: nothing."""

from __future__ import annotations

import gc
import resource
import time
from pathlib import Path
from typing import TextIO

from proxy.http2.engine import Limits
from tests.support.peers.engines import EventFactory
from tests.support.peers.events import DataReceived, HeadReceived, StreamReset, TrailersReceived
from tests.support.peers.memory import Joined
from tests.support.peers.raw import REQUEST, RESPONSE, TRAILERS, line

_A_ROUND = 50
"""Streams open at once."""
_CONNECTION_STREAMS = 200_000
"""Streams of one connection; then a new one, so that what a connection leaves behind shows as well."""


def resident_octets() -> int:
    """Return the resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def live_objects() -> int:
    """Return how many objects the collector knows of, garbage excluded."""
    gc.collect()
    return len(gc.get_objects())


def run_streams(make: EventFactory, streams: int, out: TextIO) -> None:
    """Carry out so many exchanges, of every ending there is; print the memory after each tenth."""
    done = 0
    started = time.monotonic()
    joined = Joined(make, client_limits=Limits(), server_limits=Limits())
    on_this = 0
    for part in range(1, 11):
        while done < streams * part // 10:
            exchange_round(joined, done)
            done += _A_ROUND
            on_this += _A_ROUND
            if on_this >= _CONNECTION_STREAMS:
                joined = Joined(make, client_limits=Limits(), server_limits=Limits())
                on_this = 0
        seconds = time.monotonic() - started
        out.write(
            f"{done:>9,} streams {resident_octets() / 1024:>9,.0f} KiB {live_objects():>7,} objects {seconds:.0f} s\n"
        )
        out.flush()


def exchange_round(joined: Joined, number: int) -> None:
    """Open some streams and end them: whole, with trailers, reset by either side, refused as malformed."""
    client, server = joined.client, joined.server
    fields = [*REQUEST, line(b"x-number", b"%d" % number), (b"authorization", b"Bearer %d" % number, True)]
    for place in range(_A_ROUND):
        kind = place % 10
        head = [*fields, line(b"te", b"gzip")] if kind == 9 else fields
        stream_id = client.engine.send_request(head, end_stream=kind == 8)
        if kind < 8:
            client.engine.send_data(stream_id, b"x" * 1024, end_stream=kind != 7)
        if kind == 7:
            client.engine.reset(stream_id, 8, after_data=True)
    joined.run()
    for event in server.events:
        if isinstance(event, HeadReceived):
            answer(joined, event.stream_id, event.stream_id // 2 % 10)
    joined.run()
    endings = (StreamReset, TrailersReceived)
    ended = sum(isinstance(event, (*endings, DataReceived)) for event in client.events)
    assert ended, "exchanges come to an end"
    assert client.engine.open_streams == server.engine.open_streams == 0
    client.forget()
    server.forget()


def answer(joined: Joined, stream_id: int, kind: int) -> None:
    """Respond in one of the ways there are."""
    engine = joined.server.engine
    if kind == 6:
        engine.reset(stream_id, 2)
        return
    engine.send_head(stream_id, RESPONSE, end_stream=False)
    engine.send_data(stream_id, b"y" * 1024, end_stream=kind % 2 == 0)
    if kind % 2:
        engine.send_trailers(stream_id, TRAILERS)

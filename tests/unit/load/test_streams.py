from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hpack
import pytest

from tests.load import frames
from tests.load.cost import Process, ProcessGone, busy_seconds
from tests.load.echo_upstream import EchoConnection, Guard, seconds_left
from tests.load.streams import StreamFailed, StreamsClient


def bearer(expires: object) -> bytes:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expires}).encode()).rstrip(b"=")
    return b"Bearer e30." + claims + b".c2ln"


class AcceptsEveryToken(Guard):
    """Lets streams in without a token, as the client under test has none."""

    def admits(self, head: bytes, decoder: hpack.Decoder) -> bool:
        super().admits(head, decoder)
        return True


@asynccontextmanager
async def echo(guard: Guard) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(lambda: EchoConnection(guard), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.asyncio
async def test_messages_go_back_and_forth_on_every_stream_for_the_given_time() -> None:
    def bounce(port: int) -> tuple[int, float, list[float]]:
        with StreamsClient(port, "/echo") as client:
            client.open(10)
            client.open(10)
            assert len(client.streams) == 20
            return client.bounce(0.1)

    async with echo(AcceptsEveryToken()) as port:
        trips, took, each = await asyncio.to_thread(bounce, port)
    assert trips == len(each)
    assert trips >= 20
    assert took >= 0.1
    assert all(0 < one <= took for one in each)


@pytest.mark.asyncio
async def test_messages_go_back_and_forth_until_an_event_is_set() -> None:
    over = threading.Event()

    def bounce(port: int) -> tuple[int, float, list[float]]:
        with StreamsClient(port, "/echo") as client:
            client.open(3)
            over.set()
            return client.bounce(3600.0, over)

    async with echo(AcceptsEveryToken()) as port:
        trips, _, _ = await asyncio.to_thread(bounce, port)
    assert trips == 3, "one message on each stream"


@pytest.mark.asyncio
async def test_a_stream_without_a_token_is_refused_and_reported() -> None:
    def knock(port: int) -> None:
        with StreamsClient(port, "/echo") as client:
            client.open(1)

    async with echo(Guard()) as port:
        with pytest.raises(StreamFailed, match="401"):
            await asyncio.to_thread(knock, port)


def test_a_closed_connection_and_a_reset_stream_are_reported() -> None:
    for answer, said in ((b"", "closed"), (frames.frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x07"), "code 7")):
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            StreamsClient(listener.getsockname()[1], "/") as client,
        ):
            served, _ = listener.accept()
            with served:
                served.recv(1000)
                served.sendall(answer)
                served.shutdown(socket.SHUT_WR)
                with pytest.raises(StreamFailed, match=said):
                    client.open(1)


def test_the_echo_accepts_a_token_until_it_expires() -> None:
    assert seconds_left(bearer(1000), 940.0) == 60.0
    assert seconds_left(bearer(1000), 1060.0) == -60.0


@pytest.mark.parametrize("value", [b"", b"Bearer", b"Bearer x", b"Bearer a.!.c", b"Basic e30.e30.e30", bearer("soon")])
def test_the_echo_refuses_an_invalid_token(value: bytes) -> None:
    assert seconds_left(value, 0.0) == 0.0


def test_each_new_token_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    guard, encoder, decoder = Guard(), hpack.Encoder(), hpack.Decoder()
    good, stale = bearer(time.time() + 60), bearer(time.time() - 1)
    admitted = [
        guard.admits(encoder.encode([(b"x-serverless-authorization", token)]), decoder) for token in (good, good, stale)
    ]
    assert admitted == [True, True, False]
    assert capsys.readouterr().out.count("token ") == 2


def test_cpu_and_memory_of_a_process_are_read() -> None:
    process = Process(os.getpid())
    before = process.cpu_seconds()
    assert sum(range(200_000))
    assert process.cpu_seconds() > before
    assert process.rss_octets() > 1 << 20
    assert process.open_files() >= 3
    assert process.threads() >= 1
    assert busy_seconds(min(os.sched_getaffinity(0))) > 0


def test_a_process_that_has_ended_is_reported() -> None:
    with pytest.raises(ProcessGone):
        Process(2**22 - 1)

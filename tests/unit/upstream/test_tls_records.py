"""Messages of the TLS handshake behind the handshake: in pieces, between content, while the client writes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from proxy.emulator import Certificates
from proxy.http2.engine import Stream
from proxy.http2.policy.sending import MAX_TAKEN_OCTETS
from tests.support.peers.events import DataReceived, HeadReceived
from tests.support.peers.raw import REQUEST
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.test_tls import LAST, RESPONSE, SETTINGS, frame
from tests.unit.upstream.tls_records import ALERT, DATA, HANDSHAKE, RecordServer, kinds, record_server

TICKET_BODY: Final = bytes(8) + b"\x01\0" + b"\0\x40" + bytes(64) + b"\0\0"
TICKET: Final = b"\x04" + len(TICKET_BODY).to_bytes(3) + TICKET_BODY
KEY_UPDATE: Final = b"\x18\0\0\x01\0"
HELLO_REQUEST: Final = bytes(4)
WINDOW: Final = frame(8, 0, 0, (1 << 20).to_bytes(4)) + frame(8, 0, 1, (1 << 20).to_bytes(4))


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def server(certificates: Certificates, tmp_path: Path) -> AsyncIterator[RecordServer]:
    async with record_server(certificates, tmp_path, ssl.TLSVersion.TLSv1_3) as made:
        made.give(made.record(DATA, SETTINGS))
        await turns()
        made.read()
        yield made


def asked(server: RecordServer) -> tuple[RecordingReceiver, Stream]:
    """Send the head of a request."""
    receiver = RecordingReceiver()
    return receiver, server.connection.open(REQUEST, False, receiver)


@pytest.mark.parametrize("message", [TICKET, KEY_UPDATE], ids=["ticket", "new keys"])
@pytest.mark.asyncio
async def test_what_is_sent_within_a_message_of_the_handshake_leaves_behind_it(
    server: RecordServer, message: bytes
) -> None:
    receiver, stream = asked(server)
    await turns()
    server.give(server.record(HANDSHAKE, message[:4]))
    stream.send_data(b"within", False)
    await turns()
    stream.send_data(b" the message", True)
    await turns()
    before = server.tls.get_write_buffer_size()
    server.read()
    assert b"within" not in server.clear, "TLS takes nothing"
    assert before > server.transport.get_write_buffer_size(), "what waits is counted"
    server.give(server.record(HANDSHAKE, message[4:]))
    if message is KEY_UPDATE:
        server.change_keys()
    await turns()
    server.read()
    assert server.clear.endswith(frame(0, 0, 1, b"within") + frame(0, 1, 1, b" the message"))
    server.give(server.record(DATA, RESPONSE), server.record(DATA, LAST))
    await turns()
    assert receiver.kinds == [HeadReceived, DataReceived]


@pytest.mark.asyncio
async def test_no_more_waits_for_the_end_of_a_message_than_for_a_peer_that_does_not_read(server: RecordServer) -> None:
    receiver, stream = asked(server)
    await turns()
    server.give(server.record(DATA, WINDOW), server.record(HANDSHAKE, TICKET[:4]))
    stream.send_data(bytes(1 << 20), True)
    for _ in range(20):
        await turns()
    assert MAX_TAKEN_OCTETS <= server.tls.get_write_buffer_size() < MAX_TAKEN_OCTETS + 1_000
    assert receiver.sent_octets == 0, "nothing is acknowledged"
    server.give(server.record(HANDSHAKE, TICKET[4:]))
    for _ in range(20):
        await turns()
        server.read()
    assert server.clear.count(0) > 1 << 20, "all of it has left"


@pytest.mark.asyncio
async def test_the_end_of_a_message_does_not_wake_what_waits_for_the_socket(server: RecordServer) -> None:
    receiver, stream = asked(server)
    await turns()
    server.give(server.record(HANDSHAKE, TICKET[:4]))
    stream.send_data(b"some", False)
    await turns()
    server.transport.stall()
    server.give(server.record(HANDSHAKE, TICKET[4:]))
    await turns()
    assert receiver.sent_octets == 0, "the socket takes nothing"
    server.transport.resume()
    assert receiver.sent_octets == len(b"some")


@pytest.mark.asyncio
async def test_a_socket_that_takes_octets_again_does_not_wake_what_waits_for_a_message(server: RecordServer) -> None:
    receiver, stream = asked(server)
    await turns()
    server.give(server.record(HANDSHAKE, TICKET[:4]))
    stream.send_data(b"some", False)
    await turns()
    server.transport.stall()
    server.transport.resume()
    assert receiver.sent_octets == 0, "TLS takes nothing"
    server.give(server.record(HANDSHAKE, TICKET[4:]))
    assert receiver.sent_octets == len(b"some")


@pytest.mark.asyncio
async def test_an_alert_is_the_reason_also_where_something_is_written_before_the_end(server: RecordServer) -> None:
    receiver, _ = asked(server)
    ping = frame(6, 0, 0, bytes(8))
    for _ in range(21):  # one read a turn, until its answer is written at once
        await turns()
        server.give(server.record(DATA, ping))
    await turns()
    server.give(server.record(DATA, ping), server.record(ALERT, b"\2\x50"))
    await turns()
    assert "ALERT_INTERNAL_ERROR" in str(receiver.failure)


@pytest.mark.asyncio
async def test_a_server_with_tls_1_2_that_wants_a_new_handshake_is_refused_that(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with record_server(certificates, tmp_path, ssl.TLSVersion.TLSv1_2) as server:
        server.give(server.record(DATA, SETTINGS))
        await turns()
        receiver, stream = asked(server)
        await turns()
        server.read()
        server.give(server.record(HANDSHAKE, HELLO_REQUEST))
        assert kinds(server.read()) == [ALERT]
        stream.send_data(b"content", True)
        await turns()
        assert kinds(server.read()) == [DATA]
        server.give(server.record(DATA, RESPONSE + LAST))
        await turns()
        assert receiver.kinds == [HeadReceived, DataReceived]

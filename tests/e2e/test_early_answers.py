"""A service that answers before it has read its request and does not want the rest: to Restate, a success."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.peers.sockets import Peer, Server, server
from tests.support.restate_server import RestateServer
from tests.support.sidecar import sidecar

LARGE = "x" * (8 << 20)

ANY = {"required": False, "contentType": "*/*"}
JSON = {"contentType": "application/json", "setContentTypeIfEmpty": False}
MANIFEST = {
    "protocolMode": "BIDI_STREAM",
    "minProtocolVersion": 5,
    "maxProtocolVersion": 5,
    "services": [
        {"name": "Early", "ty": "SERVICE", "handlers": [{"name": "answer", "input": ANY, "output": JSON}]},
    ],
}


def message(kind: int, payload: bytes) -> bytes:
    """Return a message of the service protocol: type, flags and length before its octets."""
    return kind.to_bytes(2, "big") + bytes(2) + len(payload).to_bytes(4, "big") + payload


def output(value: bytes) -> bytes:
    """Return an OutputCommandMessage with this value (field 14, of whose message it is field 1), and the end."""
    content = b"\x0a" + bytes([len(value)]) + value
    return message(0x0401, b"\x72" + bytes([len(content)]) + content) + message(0x0003, b"")


async def serve(service: Server) -> None:
    """Answer discoveries, and each invocation as soon as its head is there; then reset with NO_ERROR."""
    peer = await service.accepted()
    while True:
        stream, fields, _ = await peer.request()
        if dict(fields)[b":path"].endswith(b"/discover"):
            kind = b"application/vnd.restate.endpointmanifest.v3+json"
            peer.respond(stream, fields=[(b"content-type", kind)])
            await peer.send(stream, json.dumps(MANIFEST).encode(), end=True)
            continue
        await answer_early(peer, stream)


async def answer_early(peer: Peer, stream: int) -> None:
    """Answer, and want no more of the request."""
    peer.respond(stream, fields=[(b"content-type", b"application/vnd.restate.invocation.v5")])
    await peer.send(stream, output(b'"early"'), end=True)
    peer.reset(stream, 0)


@pytest.mark.asyncio
async def test_restate_accepts_a_response_that_came_before_the_end_of_its_request(tmp_path: Path) -> None:
    async with server() as service, RestateServer.running(tmp_path, max_attempts=1) as restate:
        routes = tmp_path / "routes.toml"
        routes.write_text(f'[routes.early]\nurl = "http://127.0.0.1:{service.port}"\ngcp_id_token = false\n')
        async with sidecar("--config", routes) as running:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(serve(service))
                registered = await restate.register(f"{running.url}/early")
                assert registered.services == ["Early"], registered.body
                for _ in range(3):
                    assert await restate.invoke("Early", "answer", LARGE) == (200, "early")
                serving.cancel()
            assert not [line for line in restate.program.lines if "Invocation error" in line]

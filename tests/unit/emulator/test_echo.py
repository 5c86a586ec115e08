from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.emulator import Google, echo
from tests.support.emulated import AUDIENCE, CALLER


async def _run(scope: dict[str, Any], *messages: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []
    waiting = list(messages)

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await echo(scope, receive, send)
    assert waiting == []
    return sent


def _http(*fields: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "2",
        "method": "POST",
        "path": "/a b",
        "query_string": b"c=d",
        "headers": list(fields),
    }


@pytest.mark.asyncio
async def test_it_describes_the_request(google: Google) -> None:
    token = google.id_token(CALLER, AUDIENCE)[0].rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"
    fields = [(b"authorization", b"Basic Zm9v"), (b"x-serverless-authorization", b"Bearer " + token.encode())]
    start, body = await _run(
        _http(*fields),
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.request", "body": b"de"},
    )
    seen = json.loads(body["body"])
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert seen.pop("claims")["email"] == CALLER
    assert seen == {
        "method": "POST",
        "path": "/a b",
        "query": "c=d",
        "http_version": "2",
        "fields": [[name.decode(), value.decode()] for name, value in fields],
        "octets": 5,
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("fields", [[], [(b"authorization", b"Basic Zm9v")]])
async def test_without_a_token_there_are_no_claims(fields: list[tuple[bytes, bytes]]) -> None:
    _, body = await _run(_http(*fields), {"type": "http.request"})
    assert json.loads(body["body"])["claims"] is None


@pytest.mark.asyncio
async def test_a_client_that_disconnects_gets_no_response() -> None:
    assert await _run(_http(), {"type": "http.disconnect"}) == []


@pytest.mark.asyncio
async def test_the_lifespan_is_completed_and_a_websocket_is_closed() -> None:
    phases = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert await _run({"type": "lifespan"}, *phases) == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete"},
    ]
    assert await _run({"type": "websocket"}) == [{"type": "websocket.close"}]

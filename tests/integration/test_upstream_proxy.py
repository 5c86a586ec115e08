"""Cloud Run is reached through the HTTP proxy that `upstream_proxy` names, whose login is a secret."""

from __future__ import annotations

import aiohttp
import pytest

from tests.support.chain import StartChain
from tests.support.peers.connect_proxy import connect_proxy

HOST = "greeter.example"
"""A name that only the proxy knows."""


@pytest.mark.asyncio
async def test_requests_go_through_the_proxy_and_its_login_is_nowhere_to_be_seen(chain: StartChain) -> None:
    async with connect_proxy({}, login="ada:hunter2") as proxy:
        settings = f'upstream_proxy = "http://ada:hunter2@127.0.0.1:{proxy.port}"\nlog_level = "debug"\n'
        async with chain(settings=settings, host=HOST) as (running, upstream, client):
            refused = client.open("/svc/discover", method="GET", end=True)
            response = await client.response(refused)
            assert response.status == 503
            assert f"does not connect to {HOST}:{upstream.port} (502 Bad Gateway)".encode() in response.content

            proxy.ports[f"{HOST}:{upstream.port}"] = upstream.port
            stream = client.open("/svc/discover", method="GET", end=True)
            peer, far, _, _ = await upstream.request()
            peer.respond(far, 200, end=True)
            assert (await client.response(stream)).status == 200

            shown = [response.content]
            async with aiohttp.ClientSession() as http:
                for path in ("/", "/status", "/metrics", "/routes"):
                    async with http.get(f"http://{running.admin}{path}") as answer:
                        shown.append(await answer.read())
            lines = await running.end()
    assert set(proxy.targets()) == {f"{HOST}:{upstream.port}"}
    assert all(b"proxy-authorization: Basic " in head for head in proxy.heads)
    assert b"hunter2" not in b"".join(shown)
    assert "hunter2" not in str(lines)
    assert any("greeter.example" in str(line) for line in lines)

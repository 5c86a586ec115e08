"""What the real sidecar does about its upstream: connecting, running out of streams, GOAWAY, and failing clearly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from h2.settings import SettingCodes

from tests.support.chain import UPSTREAM, StartChain
from tests.support.names import name_server
from tests.support.peers.sockets import Gone, Peer, Reset


async def refused(client: Peer, path: str) -> tuple[dict[bytes, bytes], str]:
    stream = client.open(path, method="GET" if path.endswith("/discover") else "POST", end=True)
    head = await client.head(stream)
    return head, (await client.body(stream)).decode()


@pytest.mark.asyncio
async def test_go_away_lets_live_streams_finish_and_sends_new_ones_elsewhere(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        old = client.open("/svc/old")
        first, first_stream, _, _ = await upstream.request()
        # Google's two steps: a warning that counts nothing out, then the real end.
        first.go_away((1 << 31) - 1)
        first.respond(first_stream)
        await client.head(old)
        new = client.open("/svc/new", end=True)
        second = await upstream.accepted()
        if second is first:
            second = await upstream.accepted()
        second_stream, fields, _ = await second.request()
        assert (b":path", b"/new") in fields
        second.respond(second_stream, end=True)
        assert (await client.head(new))[b":status"] == b"200"
        first.go_away(first_stream)
        await client.send(old, b"still here", end=True)
        assert await first.body(first_stream) == b"still here"
        await first.send(first_stream, b"and answered", end=True)
        assert await client.body(old) == b"and answered"
        await first.closed
        assert not client.went_away.done()


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["refused", "above"])
async def test_a_request_that_was_provably_not_processed_is_sent_again_whole(chain: StartChain, way: str) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x")
        await client.send(stream, b"first half, ")
        peer = await upstream.accepted()
        upstream_stream, _, _ = await peer.request()
        assert await peer.data(upstream_stream) == b"first half, "
        if way == "refused":
            peer.reset(upstream_stream, 0x7)
        else:
            peer.go_away(0)
        again = peer if way == "refused" else await upstream.accepted()
        again_stream, _, _ = await again.request()
        await client.send(stream, b"second half", end=True)
        assert await again.body(again_stream) == b"first half, second half"
        again.respond(again_stream, end=True)
        assert (await client.head(stream))[b":status"] == b"200"


@pytest.mark.asyncio
async def test_a_request_that_is_no_longer_held_gets_503(chain: StartChain) -> None:
    async with chain(settings="replay_octets = 1000") as (_, upstream, client):
        stream = client.open("/svc/x")
        await client.send(stream, bytes(1001))
        peer, upstream_stream, _, _ = await upstream.request()
        peer.reset(upstream_stream, 0x7)
        head = await client.head(stream)
        assert head[b":status"] == b"503"
        assert head[b"x-cloudrun-sidecar-error"] == b"upstream-refused-stream"
        assert b"retry-after" in head
        await client.send(stream, bytes(32 << 10), end=True)  # a little of the rest is swallowed, credit and all
        assert await client.ping() == b"12345678"


@pytest.mark.asyncio
async def test_an_upstream_that_refuses_every_stream_is_retried_a_bounded_number_of_times(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x", end=True)
        peer = await upstream.accepted()
        for _ in range(3):
            upstream_stream, _, _ = await peer.request()
            peer.reset(upstream_stream, 0x7)
        head = await client.head(stream)
        assert head[b":status"] == b"503"


@pytest.mark.asyncio
async def test_more_connections_are_opened_when_streams_run_out(chain: StartChain) -> None:
    async with chain(upstream={"settings": {SettingCodes.MAX_CONCURRENT_STREAMS: 10}}) as (_, upstream, client):
        streams = [client.open(f"/svc/{number}", end=True) for number in range(35)]
        answered = 0
        live: dict[Peer, int] = {}
        while answered < 35:
            peer = await upstream.accepted()
            live[peer] = 0
            while answered < 35 and live[peer] < 10:
                upstream_stream, _, _ = await peer.request()
                live[peer] += 1
                answered += 1
                peer.respond(upstream_stream)
        assert sorted(live.values()) == [5, 10, 10, 10]
        for stream in streams:
            assert (await client.head(stream))[b":status"] == b"200"


@pytest.mark.asyncio
async def test_a_request_beyond_all_connections_waits_and_then_gets_503(chain: StartChain) -> None:
    settings = "max_upstream_connections = 1\nstream_wait_timeout = 0.5"
    async with chain(settings=settings, upstream={"settings": {SettingCodes.MAX_CONCURRENT_STREAMS: 1}}) as (
        _,
        upstream,
        client,
    ):
        first, second = client.open("/svc/first", end=True), client.open("/svc/second", end=True)
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream, end=True)
        await client.head(first)
        upstream_stream, fields, _ = await peer.request()
        assert (b":path", b"/second") in fields
        head, text = await refused(client, "/svc/third")
        assert head[b"x-cloudrun-sidecar-error"] == b"upstream-saturated"
        assert "max_upstream_connections" in text
        peer.respond(upstream_stream, end=True)
        await client.head(second)


@pytest.mark.asyncio
async def test_an_upstream_that_cannot_be_reached_is_named(chain: StartChain, free_port: int) -> None:
    async with chain(routes={"svc": f"https://127.0.0.1:{free_port}"}) as (_, _, client):
        head, text = await refused(client, "/svc/invoke/S/h")
        assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"503", b"upstream-connect-failed")
        assert 1 <= int(head[b"retry-after"]) <= 5
        assert f"https://127.0.0.1:{free_port}" in text


@pytest.mark.asyncio
async def test_a_name_that_does_not_exist_is_named(chain: StartChain, tmp_path: Path) -> None:
    async with (
        name_server() as names,
        chain(routes={"svc": "https://nowhere.invalid"}, under=names.under(tmp_path)) as (_, _, client),
    ):
        head, text = await refused(client, "/svc/invoke/S/h")
        assert head[b"x-cloudrun-sidecar-error"] == b"upstream-connect-failed"
        assert "the host name of https://nowhere.invalid does not resolve" in text


@pytest.mark.asyncio
async def test_an_untrusted_certificate_is_refused_and_the_remedy_named(chain: StartChain) -> None:
    async with chain(trusted=False) as (_, _, client):
        head, text = await refused(client, "/svc/discover")
        assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"424", b"upstream-tls-failed")
        assert "--upstream-ca" in text
        head, _ = await refused(client, "/svc/invoke/S/h")
        assert head[b":status"] == b"503"
        assert 10 <= int(head[b"retry-after"]) <= 30


@pytest.mark.asyncio
async def test_a_certificate_for_another_name_is_refused(chain: StartChain) -> None:
    async with chain(certificate_for=["elsewhere.example"]) as (_, _, client):
        head, _ = await refused(client, "/svc/discover")
        assert head[b"x-cloudrun-sidecar-error"] == b"upstream-tls-failed"


@pytest.mark.asyncio
@pytest.mark.parametrize("alpn", [["http/1.1"], []])
async def test_an_upstream_without_http2_is_reported_with_the_remedy(chain: StartChain, alpn: list[str]) -> None:
    async with chain(alpn=alpn) as (_, _, client):
        head, text = await refused(client, "/svc/discover")
        assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"424", b"upstream-not-http2")
        assert "--use-http2" in text


@pytest.mark.asyncio
async def test_a_plain_http_upstream_that_speaks_http1_is_reported(chain: StartChain) -> None:
    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(http1, "127.0.0.1", 0)
    async with listening:
        routes = {"svc": f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"}
        async with chain(routes=routes) as (_, _, client):
            head, text = await refused(client, "/svc/discover")
            assert head[b"x-cloudrun-sidecar-error"] == b"upstream-not-http2"
            assert "--use-http2" in text


@pytest.mark.asyncio
async def test_a_silent_upstream_fails_at_the_connect_deadline(chain: StartChain) -> None:
    silent = asyncio.Event()

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    listening = await asyncio.start_server(nothing, "127.0.0.1", 0)
    async with listening:
        routes = {"svc": f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"}
        async with chain(settings="connect_timeout = 0.3", routes=routes) as (_, _, client):
            head, text = await refused(client, "/svc/discover")
            assert head[b"x-cloudrun-sidecar-error"] == b"upstream-connect-timeout"
            assert "0.3 s" in text
        silent.set()


@pytest.mark.asyncio
async def test_h2c_upstreams_on_loopback_work_with_prior_knowledge(chain: StartChain) -> None:
    async with chain(tls=False, routes={"svc": f"{UPSTREAM}/base"}) as (_, upstream, client):
        stream = client.open("/svc/x", end=True)
        peer, upstream_stream, fields, _ = await upstream.request()
        assert (b":path", b"/base/x") in fields
        assert (b":scheme", b"http") in fields
        peer.respond(upstream_stream, end=True)
        assert (await client.head(stream))[b":status"] == b"200"


@pytest.mark.asyncio
async def test_unknown_routes_and_refused_paths_are_answered_and_never_forwarded(chain: StartChain) -> None:
    async with chain(routes={"greeter": f"{UPSTREAM}/base", "counter": UPSTREAM}) as (_, upstream, client):
        head, text = await refused(client, "/unknown/discover")
        assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"404", b"route-not-found")
        assert "/greeter" in text
        assert "/counter" in text
        for path in (
            "/greeter/../x",
            "/greeter/%2e%2e/x",
            "/greeter%2Fx",
            "/greeter//x",
            "/greeter/..",
            "/greeter\\x",
        ):
            head, _ = await refused(client, path)
            assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"400", b"path-refused"), path
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, [(b":method", b"CONNECT"), (b":authority", b"greeter:443")])
        client.flush()
        assert (await client.head(stream))[b":status"] == b"501"
        assert not upstream.peers


@pytest.mark.asyncio
async def test_a_malformed_request_is_reset_and_other_streams_continue(chain: StartChain) -> None:
    """A malformed request is reset, or answered; the connection lives."""
    async with chain() as (_, upstream, client):
        good = client.open("/svc/good")
        peer, upstream_stream, _, _ = await upstream.request()
        bad = client.open("/svc/bad", fields=[(b"Upper-Case", b"1")])
        with pytest.raises((Reset, Gone)) as fault:
            await client.head(bad)
        assert isinstance(fault.value, Reset)
        assert fault.value.code == 0x1
        peer.respond(upstream_stream, end=True)
        assert (await client.head(good))[b":status"] == b"200"

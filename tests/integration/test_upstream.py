"""What the real sidecar does about its upstream: connecting, running out of streams, GOAWAY, and failing clearly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from h2.settings import SettingCodes

from proxy.emulator import Certificates
from tests.support.h2_peer import Gone, Peer, Reset, client, server, server_context
from tests.support.sidecar import sidecar

Routes = Callable[..., Path]


async def refused(near: Peer, path: str) -> tuple[dict[bytes, bytes], str]:
    stream = near.open(path, method="GET" if path.endswith("/discover") else "POST", end=True)
    head = await near.head(stream)
    return head, (await near.body(stream)).decode()


@pytest.mark.asyncio
async def test_go_away_lets_live_streams_finish_and_sends_new_ones_elsewhere(
    certificates: Certificates, routes: Routes
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            old = near.open("/svc/old")
            first, first_stream, _, _ = await far.request()
            # Google's two steps: a warning that counts nothing out, then the real end.
            first.go_away((1 << 31) - 1)
            first.respond(first_stream)
            await near.head(old)
            new = near.open("/svc/new", end=True)
            second = await far.accepted() if far.connections.qsize() == 1 else None
            second = second or await far.accepted()
            if second is first:
                second = await far.accepted()
            second_stream, fields, _ = await second.request()
            assert (b":path", b"/new") in fields
            second.respond(second_stream, end=True)
            assert (await near.head(new))[b":status"] == b"200"
            first.go_away(first_stream)
            await near.send(old, b"still here", end=True)
            assert await first.body(first_stream) == b"still here"
            await first.send(first_stream, b"and answered", end=True)
            assert await near.body(old) == b"and answered"
            await first.closed
            assert not near.went_away.done()


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["refused", "above"])
async def test_what_was_provably_not_processed_is_sent_again_whole(
    certificates: Certificates, routes: Routes, way: str
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            stream = near.open("/svc/x")
            await near.send(stream, b"first half, ")
            peer = await far.accepted()
            far_stream, _, _ = await peer.request()
            assert await peer.data(far_stream) == b"first half, "
            if way == "refused":
                peer.reset(far_stream, 0x7)
            else:
                peer.go_away(0)
            again = peer if way == "refused" else await far.accepted()
            again_stream, _, _ = await again.request()
            await near.send(stream, b"second half", end=True)
            assert await again.body(again_stream) == b"first half, second half"
            again.respond(again_stream, end=True)
            assert (await near.head(stream))[b":status"] == b"200"


@pytest.mark.asyncio
async def test_what_is_no_longer_held_is_answered_503(certificates: Certificates, routes: Routes) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        config = routes("replay_octets = 1000", svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            stream = near.open("/svc/x")
            await near.send(stream, bytes(1001))
            peer, far_stream, _, _ = await far.request()
            peer.reset(far_stream, 0x7)
            head = await near.head(stream)
            assert head[b":status"] == b"503"
            assert head[b"x-cloudrun-sidecar-error"] == b"upstream-refused-stream"
            assert b"retry-after" in head
            await near.send(stream, bytes(32 << 10), end=True)  # a little of the rest is swallowed, credit and all
            assert await near.ping() == b"12345678"


@pytest.mark.asyncio
async def test_an_upstream_that_refuses_everything_is_not_asked_for_ever(
    certificates: Certificates, routes: Routes
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            stream = near.open("/svc/x", end=True)
            peer = await far.accepted()
            for _ in range(3):
                far_stream, _, _ = await peer.request()
                peer.reset(far_stream, 0x7)
            head = await near.head(stream)
            assert head[b":status"] == b"503"


@pytest.mark.asyncio
async def test_more_connections_are_opened_when_streams_run_out(certificates: Certificates, routes: Routes) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 10}) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            streams = [near.open(f"/svc/{number}", end=True) for number in range(35)]
            answered = 0
            live: dict[Peer, int] = {}
            while answered < 35:
                peer = await far.accepted()
                live[peer] = 0
                while answered < 35 and live[peer] < 10:
                    far_stream, _, _ = await peer.request()
                    live[peer] += 1
                    answered += 1
                    peer.respond(far_stream)
            assert sorted(live.values()) == [5, 10, 10, 10]
            for stream in streams:
                assert (await near.head(stream))[b":status"] == b"200"


@pytest.mark.asyncio
async def test_beyond_all_connections_a_request_waits_its_turn_and_then_gets_503(
    certificates: Certificates, routes: Routes
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    settings = "max_upstream_connections = 1\nstream_wait_timeout = 0.5"
    async with server(tls, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 1}) as far:
        config = routes(settings, svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            first, second = near.open("/svc/first", end=True), near.open("/svc/second", end=True)
            peer, far_stream, _, _ = await far.request()
            peer.respond(far_stream, end=True)
            await near.head(first)
            far_stream, fields, _ = await peer.request()
            assert (b":path", b"/second") in fields
            head, text = await refused(near, "/svc/third")
            assert head[b"x-cloudrun-sidecar-error"] == b"upstream-saturated"
            assert "max_upstream_connections" in text
            peer.respond(far_stream, end=True)
            await near.head(second)


@pytest.mark.asyncio
async def test_an_upstream_that_cannot_be_reached_is_named(free_port: int, routes: Routes) -> None:
    config = routes(svc=f"https://127.0.0.1:{free_port}", nowhere="https://nowhere.invalid")
    async with sidecar("--config", config) as running, client(*running.address) as near:
        head, text = await refused(near, "/svc/invoke/S/h")
        assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"503", b"upstream-connect-failed")
        assert 1 <= int(head[b"retry-after"]) <= 5
        assert f"https://127.0.0.1:{free_port}" in text
        head, text = await refused(near, "/nowhere/invoke/S/h")
        assert head[b"x-cloudrun-sidecar-error"] == b"upstream-connect-failed"
        assert "nowhere.invalid" in text


@pytest.mark.asyncio
async def test_an_untrusted_certificate_is_refused_and_the_remedy_named(
    certificates: Certificates, routes: Routes
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with sidecar("--config", config) as running, client(*running.address) as near:
            head, text = await refused(near, "/svc/discover")
            assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"424", b"upstream-tls-failed")
            assert "--upstream-ca" in text
            head, _ = await refused(near, "/svc/invoke/S/h")
            assert head[b":status"] == b"503"
            assert 10 <= int(head[b"retry-after"]) <= 30


@pytest.mark.asyncio
async def test_a_certificate_for_another_name_is_refused(certificates: Certificates, routes: Routes) -> None:
    tls = server_context(*certificates.server_files("elsewhere.example"))
    async with server(tls) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            head, _ = await refused(near, "/svc/discover")
            assert head[b"x-cloudrun-sidecar-error"] == b"upstream-tls-failed"


@pytest.mark.asyncio
@pytest.mark.parametrize("alpn", [["http/1.1"], []])
async def test_an_upstream_without_http2_is_told_apart_and_the_remedy_named(
    certificates: Certificates, routes: Routes, alpn: list[str]
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"), alpn=alpn)
    async with server(tls) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            head, text = await refused(near, "/svc/discover")
            assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"424", b"upstream-not-http2")
            assert "--use-http2" in text


@pytest.mark.asyncio
async def test_a_plain_http_upstream_that_speaks_http1_is_told_apart(routes: Routes) -> None:
    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(http1, "127.0.0.1", 0)
    async with listening:
        config = routes(svc=f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        async with sidecar("--config", config) as running, client(*running.address) as near:
            head, text = await refused(near, "/svc/discover")
            assert head[b"x-cloudrun-sidecar-error"] == b"upstream-not-http2"
            assert "--use-http2" in text


@pytest.mark.asyncio
async def test_an_upstream_that_accepts_and_says_nothing_meets_the_connect_deadline(routes: Routes) -> None:
    silent = asyncio.Event()

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    listening = await asyncio.start_server(nothing, "127.0.0.1", 0)
    async with listening:
        config = routes("connect_timeout = 0.3", svc=f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        async with sidecar("--config", config) as running, client(*running.address) as near:
            head, text = await refused(near, "/svc/discover")
            assert head[b"x-cloudrun-sidecar-error"] == b"upstream-connect-timeout"
            assert "0.3 s" in text
        silent.set()


@pytest.mark.asyncio
async def test_h2c_upstreams_on_loopback_work_with_prior_knowledge(routes: Routes) -> None:
    async with server() as far:
        config = routes(svc=f"http://127.0.0.1:{far.port}/base")
        async with sidecar("--config", config) as running, client(*running.address) as near:
            stream = near.open("/svc/x", end=True)
            peer, far_stream, fields, _ = await far.request()
            assert (b":path", b"/base/x") in fields
            assert (b":scheme", b"http") in fields
            peer.respond(far_stream, end=True)
            assert (await near.head(stream))[b":status"] == b"200"


@pytest.mark.asyncio
async def test_unknown_routes_and_refused_paths_are_answered_and_never_forwarded(
    certificates: Certificates, routes: Routes
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        config = routes(greeter=f"https://127.0.0.1:{far.port}/base", counter=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            head, text = await refused(near, "/unknown/discover")
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
                head, _ = await refused(near, path)
                assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"400", b"path-refused"), path
            stream = near.h2.get_next_available_stream_id()
            near.h2.send_headers(stream, [(b":method", b"CONNECT"), (b":authority", b"greeter:443")])
            near.flush()
            assert (await near.head(stream))[b":status"] == b"501"
            assert not far.peers


@pytest.mark.asyncio
async def test_a_stream_that_never_was_is_no_reason_to_lose_the_others(
    certificates: Certificates, routes: Routes
) -> None:
    """A malformed request is reset, or answered; the connection lives."""
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        config = routes(svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            good = near.open("/svc/good")
            peer, far_stream, _, _ = await far.request()
            bad = near.open("/svc/bad", fields=[(b"Upper-Case", b"1")])
            with pytest.raises((Reset, Gone)) as fault:
                await near.head(bad)
            assert isinstance(fault.value, Reset)
            assert fault.value.code == 0x1
            peer.respond(far_stream, end=True)
            assert (await near.head(good))[b":status"] == b"200"

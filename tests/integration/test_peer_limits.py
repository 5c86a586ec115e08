"""Limits on peers of the real sidecar: heads, interim heads, first requests and slow content."""

from __future__ import annotations

import asyncio

import pytest
from h2.settings import SettingCodes

from tests.support.peers.sockets import Gone, Reset, client, server
from tests.support.sidecar import sidecar

FLAGS = (
    "--no-gcp-id-token",
    *("--first-request-timeout", "1", "--head-timeout", "1"),
    *("--max-field-section", "65536", "--max-interim-heads", "5"),
)


@pytest.mark.asyncio
@pytest.mark.parametrize("engine", ["h2", "nghttp2"])
async def test_peers_beyond_a_limit_are_told_so_and_others_are_served(engine: str) -> None:
    async with server(settings={SettingCodes.MAX_HEADER_LIST_SIZE: 16 << 10}) as service:
        flags = ("--upstream", f"http://127.0.0.1:{service.port}", "--http2-engine", engine, *FLAGS)
        async with sidecar(*flags) as running, client(*running.address) as good:
            waiting = good.open("/wait")
            peer, far, _, _ = await service.request()
            async with client(*running.address) as without_request:
                # The service's limit of a head.
                large = await good.response(good.open("/large", fields=[(b"x-large", b"v" * 17_000)], end=True))
                assert (large.status, large.fields[b"x-cloudrun-sidecar-error"]) == (431, b"head-too-large")
                (line,) = await running.logged("SETTINGS_MAX_HEADER_LIST_SIZE")
                assert line["code"] == "head-too-large"
                # Our own.
                larger = await good.response(good.open("/larger", fields=[(b"x-large", b"v" * 35_000)] * 2, end=True))
                assert (larger.status, larger.fields[b"x-cloudrun-sidecar-error"]) == (431, b"head-too-large")
                await running.logged("larger than max_field_section")
                # Interim heads without end.
                stream = good.open("/interim", end=True)
                endless, _, _ = await peer.request()
                for _ in range(6):
                    peer.respond(endless, 103)
                endless_answer = await good.response(stream)
                assert (endless_answer.status, endless_answer.fields[b"x-cloudrun-sidecar-error"]) == (
                    502,
                    b"upstream-reset",
                )
                (line,) = await running.logged("too-many-interim-heads")
                assert "max_interim_heads" in str(line["remedy"])
                # Content that dribbles.
                reader, writer = await asyncio.open_connection(*running.address)
                writer.write(b"POST /slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n1")
                slow, _, _ = await peer.request()
                assert await reader.read() == b""
                with pytest.raises((Reset, Gone)):
                    await peer.body(slow)
                writer.close()
                # A connection without a request.
                assert (await without_request.went_away).error_code == 0
                await without_request.closed
            # The others have noticed nothing.
            peer.respond(far, 200, end=True)
            assert (await good.head(waiting))[b":status"] == b"200"

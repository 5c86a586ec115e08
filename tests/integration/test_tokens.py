"""Signed routes through the real sidecar: the token is there, or nothing is."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.emulator import Fault, Google, GoogleServer
from proxy.emulator.model import Endpoint
from tests.support.chain import StartChain
from tests.support.emulated import signing_key
from tests.support.peers.sockets import Fields, Peer, Server
from tests.support.sidecar import Sidecar

TOKEN = b"x-serverless-authorization"
SPOOFED = [(TOKEN, b"Bearer spoofed"), (b"x_serverless_authorization", b"Bearer spoofed"), (TOKEN, b"Bearer again")]


def spoofed(path: str) -> Fields:
    """Return tokens of the client; none for a discovery, which would be refused with them."""
    return [] if path.endswith("/discover") else SPOOFED


class Scene:
    """A sidecar between a client and a server that the test drives, with an emulated Google beside it."""

    def __init__(self, google: Google, running: Sidecar, far: Server, near: Peer) -> None:
        self.google = google
        self.running = running
        self.far = far
        self.near = near

    async def call(self, path: str = "/svc/invoke/S/h", method: str = "POST") -> tuple[dict[bytes, bytes], str]:
        """Send a request without content; head and text of the answer, which the sidecar must make up itself."""
        stream = self.near.open(path, method=method, fields=spoofed(path), end=True)
        head = await self.near.head(stream)
        return head, (await self.near.body(stream)).decode()

    async def through(self, path: str = "/svc/invoke/S/h", method: str = "POST", status: int = 200) -> Fields:
        """Send a request and answer it upstream; the fields that arrived there."""
        stream = self.near.open(path, method=method, fields=spoofed(path), end=True)
        peer, far_stream, fields, _ = await self.far.request()
        peer.respond(far_stream, status, end=True)
        assert (await self.near.head(stream))[b":status"] == str(status).encode()
        return fields


@asynccontextmanager
async def scene(
    chain: StartChain, *flags: str, google: Google | None = None, env: dict[str, str | None] | None = None
) -> AsyncIterator[Scene]:
    google = google or Google(signing_key=signing_key())
    async with GoogleServer(google, chain.certificates) as server_of_google:
        environment = {"GCE_METADATA_HOST": server_of_google.metadata_address, **(env or {})}
        async with chain(*flags, signed=["svc"], env=environment) as (running, far, near):
            yield Scene(google, running, far, near)


def tokens(fields: Fields) -> list[bytes]:
    return [value for name, value in fields if name.replace(b"_", b"-") == TOKEN]


@pytest.mark.asyncio
async def test_a_minted_token_replaces_whatever_the_client_sent(chain: StartChain) -> None:
    async with scene(chain) as at:
        fields = await at.through()
        (token,) = tokens(fields)
        assert token.startswith(b"Bearer eyJ")
        assert [mint.audience for mint in at.google.mints] == [f"https://127.0.0.1:{at.far.port}"]


@pytest.mark.asyncio
async def test_one_mint_serves_all_invocations_and_each_discovery_has_its_own(chain: StartChain) -> None:
    async with scene(chain) as at:
        discovered = [tokens(await at.through("/svc/discover", "GET")) for _ in range(2)]
        assert len(at.google.mints) == 2
        assert all(discovered)
        for _ in range(20):
            assert tokens(await at.through())
        assert len(at.google.mints) == 3


@pytest.mark.asyncio
async def test_a_burst_on_a_cold_sidecar_waits_for_one_mint(chain: StartChain) -> None:
    async with scene(chain) as at:
        streams = [at.near.open("/svc/x", end=True) for _ in range(90)]
        for _ in streams:
            peer, far_stream, fields, _ = await at.far.request()
            assert tokens(fields)
            peer.respond(far_stream, end=True)
        for stream in streams:
            assert (await at.near.head(stream))[b":status"] == b"200"
        assert len(at.google.mints) == 1


@pytest.mark.asyncio
async def test_octets_received_during_a_mint_are_held_and_then_sent_in_order(chain: StartChain) -> None:
    google = Google(slow_seconds=0.3)
    google.fail("metadata", Fault.SLOW, times=1)
    async with scene(chain, google=google) as at:
        stream = at.near.open("/svc/x")
        await at.near.send(stream, b"one, ")
        await at.near.send(stream, b"two, ")
        assert not at.far.peers
        await at.near.send(stream, b"three", end=True)
        peer, far_stream, fields, _ = await at.far.request()
        assert tokens(fields)
        assert await peer.body(far_stream) == b"one, two, three"


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.SLOW])
async def test_no_octet_is_sent_upstream_after_any_failure_of_the_mint(chain: StartChain, fault: Fault) -> None:
    google = Google(signing_key=signing_key())
    google.fail("metadata", fault)
    async with scene(chain, "--mint-timeout", "1", google=google) as at:
        stream = at.near.open("/svc/invoke/S/h", fields=SPOOFED)
        await at.near.send(stream, b"what must not leave")
        head = await at.near.head(stream)
        text = (await at.near.body(stream)).decode()
        assert head[b":status"] == b"503", text
        assert head[b"retry-after"].isdigit()
        assert head[b"content-type"].startswith(b"text/plain")
        assert head[b"x-cloudrun-sidecar-error"]
        head, text = await at.call("/svc/discover", "GET")
        assert head[b":status"] in (b"503", b"424"), text
        assert len(text.strip().splitlines()) == 1
        assert not at.far.peers
        # The remedy of the moment is to wait: once Google works again, so does the sidecar.
        google.fail("metadata", None)
        assert tokens(await at.through("/svc/discover", "GET"))
        assert tokens(await at.through())


@pytest.mark.asyncio
async def test_google_is_not_called_before_a_signed_request(chain: StartChain, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-key.json")
    async with scene(chain, env={"GOOGLE_APPLICATION_CREDENTIALS": missing}) as at:
        head, _ = await at.call("/elsewhere")
        assert head[b":status"] == b"404"
        assert not at.google.calls
        head, text = await at.call("/svc/discover", "GET")
        assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"424", b"credentials-invalid")
        assert missing in text
        head, _ = await at.call()
        assert head[b":status"] == b"503"
        assert 10 <= int(head[b"retry-after"]) <= 30
        assert not at.google.calls
        assert not at.far.peers


@pytest.mark.asyncio
async def test_repeated_401s_drop_the_token_once(chain: StartChain) -> None:
    async with scene(chain) as at:
        for _ in range(10):
            await at.through(status=401)
        assert len(at.google.mints) == 2
        await at.running.logged('"status": 401')


@pytest.mark.asyncio
async def test_an_unsigned_route_adds_no_token_and_forwards_none(chain: StartChain) -> None:
    async with chain() as (_, far, near):
        near.open("/svc/x", fields=SPOOFED, end=True)
        _, _, fields, _ = await far.request()
        assert not tokens(fields)


@pytest.mark.asyncio
async def test_a_key_file_mints_through_its_token_uri(chain: StartChain, tmp_path: Path) -> None:
    google = Google(signing_key=signing_key())
    account = "caller@emulated.iam.gserviceaccount.com"
    async with GoogleServer(google, chain.certificates) as of_google:
        key = tmp_path / "key.json"
        key.write_text(json.dumps(google.key_file(account, f"https://{of_google.tls_address}/token")))
        env: dict[str, str | None] = {
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "SSL_CERT_FILE": str(chain.certificates.ca_file),
        }
        async with scene(chain, google=google, env=env) as at:
            assert tokens(await at.through())
            assert [(mint.endpoint, mint.email) for mint in google.mints] == [("oauth", account)]


@pytest.mark.asyncio
@pytest.mark.parametrize("endpoint", ["oauth"])
async def test_nothing_is_sent_without_a_token_of_a_key_file(
    chain: StartChain, tmp_path: Path, endpoint: Endpoint
) -> None:
    google = Google(signing_key=signing_key())
    async with GoogleServer(google, chain.certificates) as of_google:
        key = tmp_path / "key.json"
        account = "caller@emulated.iam.gserviceaccount.com"
        key.write_text(json.dumps(google.key_file(account, f"https://{of_google.tls_address}/token")))
        env: dict[str, str | None] = {
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "SSL_CERT_FILE": str(chain.certificates.ca_file),
        }
        async with scene(chain, "--mint-timeout", "1", google=google, env=env) as at:
            for fault in Fault:
                if fault is Fault.SLOW:
                    continue
                google.fail(endpoint, fault)
                head, text = await at.call("/svc/discover", "GET")
                assert head[b":status"] in (b"503", b"424"), (fault, text)
                assert not at.far.peers, fault


@pytest.mark.asyncio
async def test_no_log_line_has_a_token(chain: StartChain) -> None:
    async with scene(chain, "--log-level", "debug", "--access-log") as at:
        fields = await at.through()
        await at.through(status=401)
        await at.through("/svc/discover", "GET")
        (token,) = tokens(fields)
        secret = token.removeprefix(b"Bearer ").split(b".")[2].decode()
        await at.running.program.line("token minted")
        at.running.program.send(signal.SIGTERM)
        await at.running.program.ended()
        written = "\n".join(at.running.program.lines)
        assert secret not in written
        assert "spoofed" not in written
        assert "eyJ" not in written


@pytest.mark.asyncio
async def test_a_request_that_is_cancelled_while_it_waits_for_its_token_is_never_sent(
    chain: StartChain,
) -> None:
    google = Google(signing_key=signing_key())
    google.fail("metadata", Fault.HANG)
    async with scene(chain, google=google) as at:
        waiting = [at.near.open("/svc/x") for _ in range(3)]
        await at.near.ping()
        for stream in waiting:
            at.near.reset(stream, 0x8)
        await at.near.ping()
        google.fail("metadata", None)
        assert tokens(await at.through("/svc/discover", "GET"))
        assert sum(len(peer.streams) for peer in at.far.peers) == 1

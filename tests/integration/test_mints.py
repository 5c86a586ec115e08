"""Mints that hang, clocks that are wrong and credentials that change, through the real sidecar."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.emulator import Fault, Google, GoogleServer
from tests.support.chain import UPSTREAM, StartChain
from tests.support.emulated import signing_key
from tests.support.peers.sockets import Peer, Server
from tests.support.pipes import open_with
from tests.support.sidecar import Sidecar

TOKEN = b"x-serverless-authorization"
FIRST = "first@emulated.iam.gserviceaccount.com"
SECOND = "second@emulated.iam.gserviceaccount.com"
TARGET = "target@emulated.iam.gserviceaccount.com"
WITHIN_SECONDS = 15.0

LOCAL_SOURCE = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
}


class Stage:
    """A sidecar with a credential file that can change; the route /svc goes as it is, /imp impersonates."""

    def __init__(self, google: Google, at: GoogleServer, adc: Path, running: Sidecar, far: Server, near: Peer) -> None:
        self.google = google
        self.running = running
        self.far = far
        self._at = at
        self._adc = adc
        self._near = near

    def put(self, content: object) -> None:
        """Put another content into the credential file, whole at once."""
        new = self._adc.with_suffix(".new")
        new.write_text(content if isinstance(content, str) else json.dumps(content))
        new.rename(self._adc)

    def put_key(self, account: str) -> None:
        """Put the key of an account into the credential file."""
        self.put(self.google.key_file(account, f"https://{self._at.tls_address}/token"))

    async def call(self, path: str = "/svc/invoke/S/h") -> tuple[int, str]:
        """Return status and code of a request's failure, or 200 and its principal upstream."""
        method = "GET" if path.endswith("/discover") else "POST"
        stream = self._near.open(path, method=method, end=True)
        emails: list[str] = []

        async def answer_upstream() -> None:
            peer, far_stream, fields, _ = await self.far.request()
            (token,) = [value for name, value in fields if name == TOKEN]
            emails.append(str(_claims(token)["email"]))
            peer.respond(far_stream, end=True)

        async with asyncio.TaskGroup() as group:
            upstream = group.create_task(answer_upstream())
            head = await self._near.head(stream)
            upstream.cancel()
        status = int(head[b":status"])
        assert (status == 200) == bool(emails)
        return status, emails[0] if emails else head[b"x-cloudrun-sidecar-error"].decode()

    async def calls_until(self, wanted: tuple[int, str], path: str = "/svc/invoke/S/h") -> list[tuple[int, str]]:
        """Call until this comes; return what came before."""
        before = []
        async with asyncio.timeout(WITHIN_SECONDS):
            while (came := await self.call(path)) != wanted:
                before.append(came)
        return before

    async def end(self) -> float:
        """Send SIGTERM; return after how many seconds the process has ended."""
        started = time.monotonic()
        self.running.program.send(signal.SIGTERM)
        assert await self.running.program.ended() == 0
        return time.monotonic() - started


@asynccontextmanager
async def stage(
    chain: StartChain, *flags: str, google: Google | None = None, file: bool = True
) -> AsyncIterator[Stage]:
    google = google or Google(signing_key=signing_key())
    adc = chain.folder / "adc.json"
    async with GoogleServer(google, chain.certificates) as at:
        impersonating = f'[routes.imp]\nurl = "{UPSTREAM}"\ngcp_impersonate_service_account = "{TARGET}"\n'
        env: dict[str, str | None] = {
            "GCE_METADATA_HOST": at.metadata_address,
            "SSL_CERT_FILE": str(chain.certificates.ca_file),
            "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES": "1",
            **({"GOOGLE_APPLICATION_CREDENTIALS": str(adc)} if file else {}),
        }
        async with chain(*flags, settings=impersonating, signed=["svc"], env=env) as (running, far, near):
            yield Stage(google, at, adc, running, far, near)


def _claims(token: bytes) -> dict[str, Any]:
    payload = token.split(b".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    assert isinstance(claims, dict)
    return claims


def script(folder: Path, lines: str) -> dict[str, Any]:
    path = folder / "executable.sh"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    source = {"executable": {"command": str(path), "timeout_millis": 120_000}}
    return {**LOCAL_SOURCE, "credential_source": source}


async def is_gone(pid: int) -> None:
    """Wait until a process that is not ours has ended."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(descriptor, over.set)
    try:
        async with asyncio.timeout(WITHIN_SECONDS):
            await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


# What cannot be read takes nothing from others


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
async def test_an_unreadable_subject_token_delays_neither_a_good_key_nor_the_exit(
    chain: StartChain, tmp_path: Path, kind: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    file = {"pipe": str(tmp_path / "pipe"), "device": "/dev/zero", "directory": str(tmp_path)}[kind]
    async with stage(chain) as at:
        at.put({**LOCAL_SOURCE, "credential_source": {"file": file}})
        for _ in range(3):
            assert await at.call("/imp/discover") == (424, "credentials-invalid")
            assert await at.call("/imp/invoke/S/h") == (503, "credentials-invalid")
        assert at.running.resident_octets < 150 << 20
        at.put_key(FIRST)
        assert await at.call("/svc/discover") == (200, FIRST)
        assert await at.call() == (200, FIRST)
        assert await at.end() < 5


async def started(at: Stage, pipe: Path) -> bytes:
    """Return what an executable writes to this pipe."""
    with await open_with(at.running.program.ended(within_seconds=None), pipe, "r") as opened:
        return await asyncio.to_thread(opened.read)


@pytest.mark.asyncio
async def test_a_hanging_executable_delays_neither_a_good_key_nor_the_exit(chain: StartChain, tmp_path: Path) -> None:
    async with stage(chain, "--mint-timeout", "1") as at:
        os.mkfifo(tmp_path / "started")
        lines = f"trap '' TERM HUP INT\nsleep 600 &\necho $$ $! > '{tmp_path}/started'\nwait"
        at.put(script(tmp_path, lines))
        async with asyncio.TaskGroup() as group:
            waits = group.create_task(at.call("/imp/invoke/S/h"))
            pids = await started(at, tmp_path / "started")
        assert waits.result() == (503, "token-timeout")
        at.put_key(FIRST)
        assert set(await at.calls_until((200, FIRST), "/svc/discover")) <= {(503, "token-timeout")}
        for pid in pids.split():  # the new credentials ended it
            await is_gone(int(pid))


@pytest.mark.asyncio
async def test_an_executable_does_not_outlive_the_sidecar(chain: StartChain, tmp_path: Path) -> None:
    async with stage(chain, "--mint-timeout", "1") as at:
        os.mkfifo(tmp_path / "started")
        at.put(script(tmp_path, f"trap '' TERM\nsleep 600 &\necho $$ $! > '{tmp_path}/started'\nwait"))
        async with asyncio.TaskGroup() as group:
            waits = group.create_task(at.call("/imp/discover"))
            pids = await started(at, tmp_path / "started")
        assert waits.result() == (503, "token-timeout")
        assert await at.end() < 5
        for pid in pids.split():
            await is_gone(int(pid))


@pytest.mark.asyncio
async def test_an_executable_with_endless_output_is_killed(chain: StartChain, tmp_path: Path) -> None:
    async with stage(chain) as at:
        at.put(script(tmp_path, "exec cat /dev/zero"))
        for _ in range(2):
            assert await at.call("/imp/discover") == (424, "credentials-invalid")
        assert at.running.resident_octets < 150 << 20


# Requests that wait too long fail, and the mint goes on


@pytest.mark.asyncio
async def test_a_slow_mint_serves_later_requests_after_the_first_ones_timed_out(chain: StartChain) -> None:
    google = Google(slow_seconds=3.0)
    google.fail("metadata", Fault.SLOW, times=1)
    async with stage(chain, "--mint-timeout", "0.5", google=google, file=False) as at:
        before = await at.calls_until((200, google.metadata_account))
        assert before
        assert set(before) == {(503, "token-timeout")}
        assert len(google.mints) == 1


# The clock


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", [-2 * 86_400, -7200, 7200])
async def test_requests_are_served_with_a_clock_that_is_wrong_by_more_than_the_life_of_a_token(
    chain: StartChain, seconds: int
) -> None:
    google = Google(clock=lambda: time.time() + seconds)
    async with stage(chain, google=google, file=False) as at:
        for _ in range(5):
            assert await at.call() == (200, google.metadata_account)
        for _ in range(2):
            assert await at.call("/svc/discover") == (200, google.metadata_account)
        assert len(google.mints) == 3
        warnings = [line for line in await at.running.end() if "clock of this machine" in str(line)]
        assert len(warnings) == 1
        direction = "behind" if seconds > 0 else "ahead of"
        assert warnings[0]["message"] == f"the clock of this machine is {direction} Google's; set it"
        assert abs(int(str(warnings[0]["seconds"])) - abs(seconds)) < 10


# Credentials that change


@pytest.mark.asyncio
async def test_only_the_new_key_is_used_after_a_key_was_replaced_under_load(chain: StartChain) -> None:
    async with stage(chain) as at:
        at.put_key(FIRST)
        assert await at.call() == (200, FIRST)
        at.put_key(SECOND)
        before = await at.calls_until((200, SECOND))
        assert set(before) <= {(200, FIRST)}
        for _ in range(20):
            assert await at.call() == (200, SECOND)
        at.put("{")
        assert set(await at.calls_until((503, "credentials-invalid"))) <= {(200, SECOND)}
        for _ in range(20):
            assert await at.call() == (503, "credentials-invalid")
        at.put_key(SECOND)
        assert set(await at.calls_until((200, SECOND))) <= {(503, "credentials-invalid")}


@pytest.mark.asyncio
@pytest.mark.parametrize("change", ["key", "none", "account"])
async def test_invocations_use_the_identity_that_the_last_registration_used(
    chain: StartChain, tmp_path: Path, change: str
) -> None:
    async with stage(chain, file=change != "account") as at:
        if change != "account":
            at.put_key(FIRST)
        old = await at.call()
        match change:
            case "key":
                at.put_key(SECOND)
                expected: tuple[int, str] = (200, SECOND)
            case "none":
                (tmp_path / "adc.json").unlink()
                expected = (424, "credentials-invalid")
            case _:
                at.google.metadata_account = SECOND
                expected = (200, SECOND)
        assert old[0] == 200
        assert await at.call("/svc/discover") == expected
        assert await at.call() == (200 if expected[0] == 200 else 503, expected[1])


@pytest.mark.asyncio
async def test_another_account_at_the_metadata_server_takes_effect_without_a_registration(chain: StartChain) -> None:
    async with stage(chain, file=False) as at:
        assert await at.call() == (200, at.google.metadata_account)
        old = at.google.metadata_account
        await at.running.program.line("token minted")
        at.google.metadata_account = SECOND
        assert set(await at.calls_until((200, SECOND))) <= {(200, old)}
        for fault in (Fault.RESET, Fault.SERVER_ERROR, Fault.DENIED):
            at.google.fail("metadata", fault)
            for _ in range(50):
                assert await at.call() == (200, SECOND)

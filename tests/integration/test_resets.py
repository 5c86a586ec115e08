"""Peers that accept and reset, over and over: the sidecar's other connections do not notice."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

from proxy.emulator import Certificates, CloudRunServer
from proxy.emulator.cloud_run import Receive, Scope, Send
from tests.support.sidecar import Sidecar, sidecar

IMPERSONATED = "invoker@samples.iam.gserviceaccount.com"
TURNS = 50
"""Of the good path. The bad one is asked until they are over: a failing upstream is dialled more and more rarely."""
AT_ONCE = 4


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 without content."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@contextmanager
def resetting() -> Iterator[int]:
    """Listen on a free port of 127.0.0.1 and reset each connection as soon as it is there.

    In threads: it has to be faster than the ClientHello.
    """

    def serve() -> None:
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                return
            with accepted:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
        threads = [threading.Thread(target=serve) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def federation_file(folder: Path, token_url: str) -> Path:
    """Write a credential file whose every mint begins with a call of `token_url`, which is not repeated."""
    subject_token = folder / "subject-token"
    subject_token.write_text("of a pod")
    info = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/cluster",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": token_url,
        "credential_source": {"file": str(subject_token), "format": {"type": "text"}},
    }
    file = folder / "federation.json"
    file.write_text(json.dumps(info))
    return file


def loop_environment(loop: str, folder: Path) -> dict[str, str | None]:
    """Return the environment in which the sidecar runs on this loop."""
    if loop == "uvloop":
        return {}
    (folder / "uvloop.py").write_text("raise ImportError\n")
    return {"PYTHONPATH": str(folder)}


async def answers(running: Sidecar, bad: str, good: str) -> tuple[Counter[str], Counter[str]]:
    """Ask both paths at the same time, with new connections; return the answers of each."""

    def ask(path: str) -> str:
        connection = http.client.HTTPConnection(*running.address, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as exc:
            return repr(exc)
        finally:
            connection.close()
        return f"{response.status} {response.headers.get('x-cloudrun-sidecar-error', '')}".strip()

    over = threading.Event()

    def ask_bad() -> list[str]:
        found = [ask(bad)]
        while not over.is_set():
            found.append(ask(bad))
        return found

    def ask_good() -> list[str]:
        return [ask(good) for _ in range(TURNS)]

    async with asyncio.TaskGroup() as tasks:
        of_bad = [tasks.create_task(asyncio.to_thread(ask_bad)) for _ in range(AT_ONCE)]
        try:
            of_good = await asyncio.gather(*(asyncio.to_thread(ask_good) for _ in range(AT_ONCE)))
        finally:
            over.set()
    return Counter(chain(*(task.result() for task in of_bad))), Counter(chain(*of_good))


@pytest.mark.asyncio
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_an_upstream_that_resets_connections_costs_other_routes_no_request(
    certificates: Certificates, routes: Callable[..., Path], tmp_path: Path, loop: str
) -> None:
    with resetting() as port:
        async with CloudRunServer(nothing, certificates) as service:
            config = routes(bad=f"https://127.0.0.1:{port}", good=service.url)
            flags = ("--config", config, "--upstream-ca", certificates.ca_file)
            async with sidecar(*flags, env=loop_environment(loop, tmp_path)) as running:
                of_bad, of_good = await answers(running, "/bad/discover", "/good/discover")
                assert running.program.returncode is None
    assert of_good == {"200": TURNS * AT_ONCE}
    assert set(of_bad) == {"503 upstream-connect-failed"}


@pytest.mark.asyncio
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_token_endpoint_that_resets_connections_costs_other_routes_no_request(
    certificates: Certificates, tmp_path: Path, loop: str
) -> None:
    with resetting() as port:
        async with CloudRunServer(nothing, certificates) as service:
            config = tmp_path / "routes.toml"
            config.write_text(
                f'[routes.good]\nurl = "{service.url}"\ngcp_id_token = false\n'
                f'[routes.bad]\nurl = "{service.url}"\ngcp_impersonate_service_account = "{IMPERSONATED}"\n'
            )
            environment = {
                "GOOGLE_APPLICATION_CREDENTIALS": str(federation_file(tmp_path, f"https://127.0.0.1:{port}/token")),
                "SSL_CERT_FILE": str(certificates.ca_file),
            }
            env = {**environment, **loop_environment(loop, tmp_path)}
            async with sidecar("--config", config, env=env) as running:
                of_bad, of_good = await answers(running, "/bad/discover", "/good/discover")
                assert running.program.returncode is None
    assert of_good == {"200": TURNS * AT_ONCE}
    assert set(of_bad) == {"503 token-unavailable"}

"""Google and a Cloud Run service emulated in the test's process, and the real command run against them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from proxy.emulator.cloud_run import Application, Message, Receive, Scope, Send
from tests.support.emulated import signing_key
from tests.support.services import sample_services
from tests.support.world import google_by_name, resolving

__all__ = ["CommandResult", "EmulatedSetup", "Front", "answering", "emulated_setup"]

WITHIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command wrote and how it ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Its output as JSON."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def steps(self, route: str = "svc") -> dict[str, dict[str, Any]]:
        """The steps of a route by name."""
        (report,) = [report for report in self.document["routes"] if report["route"] == route]
        return {step["step"]: step for step in report["steps"]}

    def faults(self, route: str = "svc") -> dict[str, str]:
        """The code of every step with a warning or a failure, by name of the step."""
        return {
            name: step["code"] for name, step in self.steps(route).items() if step["outcome"] in ("warning", "failed")
        }


class Front:
    """Stands before the whole service, and may date its answers."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.ahead_seconds: float | None = None
        """How far the `date` of answers is ahead of the clock; None for the service's own `date`, if it has one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start" and self.ahead_seconds is not None:
                date = (b"date", formatdate(time.time() + self.ahead_seconds, usegmt=True).encode())
                others = [field for field in message.get("headers", ()) if field[0] != b"date"]
                message = {**message, "headers": [*others, date]}
            await send(message)

        await self.app(scope, receive, dated)


def answering(status: int, body: str = "", **fields: str) -> Application:
    """Return an application that gives this answer to every request; `_` in the names of fields stands for `-`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] in ("http", "lifespan")
        if scope["type"] == "lifespan":
            return
        headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    return app


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedSetup:
    """What runs, and what the command gets."""

    google: Google
    cloud_run: CloudRun
    front: Front
    url: str
    """The service's URL, which is its audience as well."""
    endpoints: GoogleServer
    folder: Path
    environment: dict[str, str | None] = field(default_factory=dict)
    """What the command gets; may be changed."""
    under: list[str] = field(default_factory=list)
    """A command that executes the one that follows it, in other surroundings; may be changed."""

    async def run(self, *arguments: str | Path, terminal: int | None = None) -> CommandResult:
        """Run `cloudrun-sidecar` with these arguments in an empty directory, to its end.

        With `terminal` both outputs go there and are not in what is returned.
        """
        environment = {**os.environ, "GOOGLE_APPLICATION_CREDENTIALS": None, "CLOUDSDK_CONFIG": "/nonexistent"}
        environment |= self.environment
        process = await asyncio.create_subprocess_exec(
            *self.under,
            sys.executable,
            "-m",
            "proxy",
            *map(str, arguments),
            env={name: value for name, value in environment.items() if value is not None},
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if terminal is None else terminal,
            stderr=asyncio.subprocess.PIPE if terminal is None else terminal,
        )
        try:
            async with asyncio.timeout(WITHIN_SECONDS):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            raise
        assert process.returncode is not None
        return CommandResult(process.returncode, (out or b"").decode(), (err or b"").decode())

    async def run_in_terminal(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run the command with a terminal for both outputs; return its exit code and what the terminal got."""
        near, far = os.openpty()
        try:
            self.environment.update({"TERM": "xterm", "LC_ALL": "C.UTF-8", **variables})
            ran = await self.run(*arguments, terminal=far)
            os.close(far)
            far = -1
            written = bytearray()
            # Linux ends a terminal that no process has open any more with EIO.
            with contextlib.suppress(OSError):
                while chunk := os.read(near, 65_536):
                    written += chunk
            return ran.code, written.decode()
        finally:
            os.close(near)
            if far >= 0:
                os.close(far)

    async def check(self, *flags: str | Path, url: str | None = None) -> CommandResult:
        """Run `check --json` with one route, `svc`, to `url` (the service unless given)."""
        return await self.run("check", "--json", "--route", f"svc={url or self.url}", *flags)

    def with_key(self, key: Mapping[str, Any]) -> Path:
        """Have the command find this credential file; return where it is."""
        path = self.folder / "key.json"
        path.write_text(json.dumps(key))
        self.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
        return path


@asynccontextmanager
async def emulated_setup(
    folder: Path,
    app: Application | None = None,
    *,
    public: bool = False,
    api_hosts: bool = False,
    alpn: tuple[str, ...] = ("h2", "http/1.1"),
) -> AsyncIterator[EmulatedSetup]:
    """Start everything, with nothing wrong: the metadata server's account may call the service.

    `app` stands in the place of the sample Restate services; `public` leaves the check of tokens out. With `api_hosts`
    Google's API hosts lead here, which needs port 443 of a loopback address.
    """
    google = Google(slow_seconds=30.0, signing_key=signing_key())
    certificates = Certificates.create(folder / "google")
    container = app or sample_services()
    cloud_run = CloudRun(container, google, url="to be set", invokers=[google.metadata_account])
    front = Front(container if public else cloud_run)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(CloudRunServer(front, certificates, alpn_protocols=alpn))
        cloud_run.url = service.url
        cloud_run.hosts = cloud_run.names
        reach = google_by_name if api_hosts else GoogleServer
        endpoints = await stack.enter_async_context(reach(google, certificates))
        environment: dict[str, str | None] = {
            "GCE_METADATA_HOST": endpoints.metadata_address,
            "SSL_CERT_FILE": str(certificates.ca_file),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        if api_hosts:
            environment |= resolving(folder, endpoints.tls_address.partition(":")[0])
        yield EmulatedSetup(
            google=google,
            cloud_run=cloud_run,
            front=front,
            url=service.url,
            endpoints=endpoints,
            folder=folder,
            environment=environment,
        )

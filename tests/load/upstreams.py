"""What the proxies are put in front of: a fast static server, the echo of this package, and the emulated Google."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from proxy.emulator import Certificates
from tests.load.places import Processors, listens, locate, run_program
from tests.load.workloads import BODY_OCTETS, SMALL_OCTETS
from tests.support.ports import free_port
from tests.support.processes import Program

__all__ = ["Google", "Site", "echo_upstream", "google", "static_upstream"]

_IDENTITY: Final = "computeMetadata/v1/instance/service-accounts/default/identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Files and certificates of a run; made once."""

    folder: Path
    certificates: Certificates
    small: Path
    """1 KiB: what a unary request sends and gets."""
    body: Path
    """16 MiB that cannot be compressed."""

    @classmethod
    def create(cls, folder: Path) -> Site:
        """Write everything below `folder`."""
        site = cls(
            folder=folder,
            certificates=Certificates.create(folder / "certificates"),
            small=folder / "www" / "small",
            body=folder / "www" / "body",
        )
        site.small.parent.mkdir()
        site.small.write_bytes(os.urandom(SMALL_OCTETS))
        site.body.write_bytes(os.urandom(BODY_OCTETS))
        # The peers leave the route's name in the path.
        (site.small.parent / "bench").symlink_to(site.small.parent)
        return site

    def server_files(self) -> tuple[Path, Path]:
        """Return certificate and key for 127.0.0.1."""
        return self.certificates.server_files("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Google:
    """An emulated Google in a process of its own."""

    environment: dict[str, str | None]
    metadata: str

    async def authorization(self, upstream_port: int) -> str:
        """Return `Bearer` and a token for the upstream, from the metadata server, as the sidecar gets it."""
        url = f"http://{self.metadata}/{_IDENTITY}"
        query = {"audience": f"https://127.0.0.1:{upstream_port}", "format": "full"}
        fields = {"Metadata-Flavor": "Google"}
        async with aiohttp.ClientSession() as http, http.get(url, params=query, headers=fields) as response:
            response.raise_for_status()
            return f"Bearer {await response.text()}"


@asynccontextmanager
async def google(folder: Path, processors: Processors, *, token_seconds: int = 3600) -> AsyncIterator[Google]:
    """Run the emulator for the time of a `with`; its tokens live for so long."""
    argv: list[str | Path] = [*processors.prefix(proxy=False), sys.executable, "-m", "proxy", "emulate", "--json"]
    argv += ["--directory", folder, "--token-lifetime", str(token_seconds)]
    async with run_program("cloudrun-sidecar emulate", argv) as running:
        places: dict[str, Any] = json.loads((await running.line(r"^\{.*\}$"))[0])
        # The CA file that goes with it is of no use: upstreams here have certificates of the site's.
        yield Google({"GCE_METADATA_HOST": places["metadata"]}, places["metadata"])


@asynccontextmanager
async def static_upstream(site: Site, processors: Processors, *, window_bits: int | None = None) -> AsyncIterator[int]:
    """Run nghttpd over TLS, with 100 streams a connection as Cloud Run has; yields its port.

    Its windows are 1 MiB a stream and 16 MiB a connection, or 2ⁿ − 1 octets for both. Raises Unavailable.
    """
    nghttpd = locate("nghttpd", "Debian's nghttp2-server")
    certificate, key = site.server_files()
    port = free_port()
    stream, connection = (20, 24) if window_bits is None else (window_bits, window_bits)
    argv: list[str | Path] = [*processors.prefix(proxy=False), nghttpd, "--address=127.0.0.1", "--workers=1"]
    argv += [f"--window-bits={stream}", f"--connection-window-bits={connection}", "--no-rfc7540-pri"]
    argv += [f"--htdocs={site.small.parent}", str(port), key, certificate]
    async with run_program("nghttpd", argv) as running:
        await listens(running, port)
        yield port


@asynccontextmanager
async def echo_upstream(site: Site, processors: Processors) -> AsyncIterator[tuple[Program, int]]:
    """Run `tests.load.echo_upstream`; yields the program, which tells of new tokens, and its port."""
    certificate, key = site.server_files()
    argv: list[str | Path] = [*processors.prefix(proxy=False), sys.executable, "-m", "tests.load.echo_upstream"]
    async with run_program("echo upstream", [*argv, certificate, key, "0"]) as running:
        found = await running.line(r"^listening (\d+)$")
        yield running, int(found[1])

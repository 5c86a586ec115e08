"""The prologue of most integration tests: an upstream, the sidecar with routes to it, and a client of the sidecar."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from proxy.emulator import Certificates
from tests.support.peers.sockets import Peer, Server, client, server, server_context
from tests.support.sidecar import Sidecar, sidecar

__all__ = ["UPSTREAM", "UPSTREAM_PORT", "Chain", "Routes", "StartChain"]

UPSTREAM = "{upstream}"
"""Stands for the upstream's URL in routes and settings."""

UPSTREAM_PORT = "{upstream_port}"
"""Stands for the upstream's port there."""

Routes: TypeAlias = Callable[..., Path]
"""Writes a settings file with one unsigned route a keyword; the fixture `routes` of the integration tests."""


class Chain(NamedTuple):
    """What runs: the sidecar, the server behind it, and a client connected to it."""

    sidecar: Sidecar
    upstream: Server
    client: Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class StartChain:
    """Starts a `Chain` for the time of a `with`; `certificates` are trusted, and `folder` gets the settings file."""

    certificates: Certificates
    folder: Path

    @asynccontextmanager
    async def __call__(
        self,
        *flags: str | Path,
        settings: str = "",
        routes: Mapping[str, str] | None = None,
        signed: Collection[str] = (),
        host: str = "127.0.0.1",
        tls: bool = True,
        certificate_for: Sequence[str] | None = None,
        trusted: bool = True,
        alpn: list[str] | None = None,
        upstream: Mapping[str, Any] | None = None,
        client_options: Mapping[str, Any] | None = None,
        env: Mapping[str, str | None] | None = None,
        under: Sequence[str] = (),
    ) -> AsyncIterator[Chain]:
        """Start an upstream, the sidecar and a client.

        `settings` are lines of the settings file, `routes` the URL of each route, both with `UPSTREAM` or, in URLs,
        `UPSTREAM_PORT` where they mean it; without `routes`, there is one, `svc`, to the upstream. Routes send no token
        unless they are `signed`. The upstream is known as `host`; it listens with `tls` and a certificate for
        `certificate_for` (for `host` unless given), which the sidecar trusts unless `trusted` is False, and offers
        `alpn` (h2 unless given). `upstream` and `client_options` go to the two `Peer`s, `flags`, `env` and `under` to
        the sidecar.
        """
        context = None
        if tls:
            context = server_context(*self.certificates.server_files(*(certificate_for or [host])), alpn=alpn)
        async with server(context, **(upstream or {})) as listening:
            url = f"{'https' if tls else 'http'}://{host}:{listening.port}"
            tables = [
                f'[routes."{name}"]\n'
                f'url = "{target.replace(UPSTREAM, url).replace(UPSTREAM_PORT, str(listening.port))}"\n'
                f"gcp_id_token = {str(name in signed).lower()}\n"
                for name, target in ({"svc": UPSTREAM} if routes is None else routes).items()
            ]
            config = self.folder / "routes.toml"
            config.write_text("\n".join([settings.replace(UPSTREAM, url), *tables]))
            trust = ("--upstream-ca", self.certificates.ca_file) if trusted else ()
            async with (
                sidecar("--config", config, *trust, *flags, env=env, under=under) as running,
                client(*running.address, **(client_options or {})) as connected,
            ):
                yield Chain(running, listening, connected)

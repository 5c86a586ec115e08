"""A real restate-server on ports and data of its own, and the little of its two APIs that tests and demo need."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from tests.support.namespaces import unshared
from tests.support.processes import Program, program

__all__ = ["Invoked", "Registered", "RestateServer", "find_restate_server"]

_START_SECONDS = 60.0
_CONFIGURATION = """
disable-telemetry = true
log-format = "compact"
log-disable-ansi-codes = true
shutdown-timeout = "5s"
default-num-partitions = 4
rocksdb-total-memory-size = "256 MiB"
bind-address = "127.0.0.1:0"
[admin]
bind-address = "127.0.0.1:{admin_port}"
[ingress]
bind-address = "127.0.0.1:{ingress_port}"
[worker.invoker]
inactivity-timeout = "{inactivity_milliseconds}ms"
[default-retry-policy]
initial-interval = "50ms"
max-interval = "1s"
"""


class Registered(NamedTuple):
    """What the admin API says to a registration: 201 new, 200 known already, else refused."""

    status: int
    body: dict[str, Any]

    @property
    def services(self) -> list[str]:
        """The names of the services that were found."""
        return [service["name"] for service in self.body["services"]]


class Invoked(NamedTuple):
    """What the ingress answers to an invocation; `value` is the handler's result, or the error as Restate words it."""

    status: int
    value: Any


@dataclass(frozen=True, slots=True)
class RestateServer:
    """A running server; `http` serves both of its APIs."""

    program: Program
    admin_url: str
    ingress_url: str
    http: aiohttp.ClientSession

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        folder: Path,
        *,
        admin_port: int = 0,
        ingress_port: int = 0,
        node_name: str = "node",
        inactivity_milliseconds: int = 60_000,
        max_attempts: int | None = None,
        metadata_address: str | None = None,
        ca_file: Path | None = None,
        http_proxy: str | None = None,
        identity_key_file: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        hosts: Path | None = None,
        log: Path | None = None,
    ) -> AsyncIterator[RestateServer]:
        """Run one with its data in `folder`; port 0 means a free one. Yields when both APIs answer.

        After `inactivity_milliseconds` without a message an invocation that waits is asked to suspend, and after
        `max_attempts` that fail one is paused; None leaves that to the server. For deployments with authentication of
        Restate's own, tokens come from the metadata server at `metadata_address`; services are trusted whose
        certificates are of `ca_file`. Requests to all `http://` deployments go to the proxy at the URL `http_proxy`.
        All requests are signed with the private key in `identity_key_file`. `env` are further variables. `hosts` takes
        the place of /etc/hosts (`unshared`): the server is linked statically, so that nothing else changes its DNS.
        """
        configuration = folder / "restate.toml"
        text = _CONFIGURATION.format(
            admin_port=admin_port, ingress_port=ingress_port, inactivity_milliseconds=inactivity_milliseconds
        )
        if max_attempts is not None:
            text += f'max-attempts = {max_attempts}\non-max-attempts = "pause"\n'
        configuration.write_text(text)
        argv: list[str | Path] = [find_restate_server(), "--config-file", configuration, "--base-dir", folder / "data"]
        argv += ["--node-name", node_name, "--listen-mode", "tcp", "--no-logo"]
        if hosts is not None:
            argv = [*unshared("--mount"), "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, *argv]
        # A proxy meant for the way out would otherwise get the invocations of local deployments.
        environment: dict[str, str | None] = {"DO_NOT_TRACK": "1", "HTTP_PROXY": None, "http_proxy": None}
        environment["GCE_METADATA_HOST"] = metadata_address
        if http_proxy is not None:
            environment["RESTATE_HTTP_PROXY"] = http_proxy
        if identity_key_file is not None:
            environment["RESTATE_REQUEST_IDENTITY_PRIVATE_KEY_PEM_FILE"] = str(identity_key_file)
        if ca_file is not None:
            environment["SSL_CERT_FILE"] = str(ca_file)
        # It does not remove what it puts there.
        spare = folder / "tmp"
        spare.mkdir(exist_ok=True)
        environment["TMPDIR"] = str(spare)
        environment |= env or {}
        async with (
            program("restate-server", argv, env=environment, log=log) as child,
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=90), connector=aiohttp.TCPConnector(limit=0)
            ) as http,
        ):
            ports = {}
            for role in ("http-ingress-server", "admin-api-server"):
                found = await child.line(
                    rf"[Ll]istening server_name={role} .*server\.port=(\d+)", within_seconds=_START_SECONDS
                )
                ports[role] = found[1]
            server = cls(
                child,
                f"http://127.0.0.1:{ports['admin-api-server']}",
                f"http://127.0.0.1:{ports['http-ingress-server']}",
                http,
            )
            await child.answers(f"{server.admin_url}/health", within_seconds=_START_SECONDS)
            await child.answers(f"{server.ingress_url}/restate/health", within_seconds=_START_SECONDS)
            yield server

    async def register(
        self,
        uri: str,
        *,
        headers: Mapping[str, str] | None = None,
        use_http_11: bool = False,
        force: bool = False,
        gcp_id_token: bool = False,
    ) -> Registered:
        """Register the deployment at `uri`; `headers` go with every request to it.

        With `gcp_id_token` so does a Google token that Restate mints, as with the flag `--gcp-id-token`.
        """
        wish = {"uri": uri, "additional_headers": dict(headers or {}), "use_http_11": use_http_11, "force": force}
        if gcp_id_token:
            wish["auth"] = {"GoogleIdToken": {}}
        async with self.http.post(f"{self.admin_url}/deployments", json=wish) as response:
            return Registered(response.status, await response.json(content_type=None))

    async def forget(self) -> None:
        """Remove all deployments, whatever runs on them."""
        async with self.http.get(f"{self.admin_url}/deployments") as response:
            known = [deployment["id"] for deployment in (await response.json())["deployments"]]
        for name in known:
            async with self.http.delete(f"{self.admin_url}/deployments/{name}?force=true") as response:
                response.raise_for_status()

    async def invoke(
        self,
        service: str,
        handler: str,
        body: object = None,
        *,
        key: str | None = None,
        send: bool = False,
        idempotency_key: str | None = None,
    ) -> Invoked:
        """Call a handler through the ingress and wait for its result; with `send` only until it is taken on.

        Calls with the same `idempotency_key` are one invocation, and have its result.
        """
        parts = [service, handler] if key is None else [service, key, handler]
        path = "/".join(quote(part, safe="") for part in parts)
        url = f"{self.ingress_url}/{path}{'/send' if send else ''}"
        content = None if body is None else io.BytesIO(json.dumps(body).encode())
        fields = {} if content is None else {"content-type": "application/json"}
        if idempotency_key is not None:
            fields["idempotency-key"] = idempotency_key
        # A handler without input refuses a content-type that came by itself.
        async with self.http.post(url, data=content, headers=fields, skip_auto_headers=["content-type"]) as response:
            text = await response.text()
            return Invoked(response.status, json.loads(text) if text else None)

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows that Restate's introspection has for `sql`."""
        url, fields = f"{self.admin_url}/query", {"accept": "application/json"}
        async with self.http.post(url, json={"query": sql}, headers=fields) as response:
            response.raise_for_status()
            rows: list[dict[str, Any]] = (await response.json())["rows"]
            return rows


def find_restate_server() -> Path:
    """Return the program: `$RESTATE_SERVER`, else the one beside this Python, else the one on PATH.

    Raises FileNotFoundError with what to do.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = os.environ.get("RESTATE_SERVER") or shutil.which("restate-server", path=path)
    if not found or not Path(found).exists():
        raise FileNotFoundError("restate-server is not installed here: `make demo` and `make test` install it")
    return Path(found)

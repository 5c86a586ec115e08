"""A cluster of restate-servers on this machine, with replicated metadata and log, and a client of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.ports import free_port
from tests.support.restate_server import Invoked, Registered, RestateServer

__all__ = ["Call", "Nodes"]

_REPLICATION: Final = 2
"""On how many nodes each entry of the log and each partition is: one node of three may be missing."""
_PARTITIONS: Final = 12
_JOIN_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
_ATTEMPT_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.1
_TASKS: Final = re.compile(r'^restate_invoker_invocation_tasks_total\{.*status="(\w+)".*\} (\d+)', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Call:
    """An invocation that has completed."""

    finished_at: float
    """On the monotonic clock."""
    seconds: float
    """From its first attempt until its result, with what was repeated."""


@dataclass(frozen=True, slots=True)
class _Ports:
    """Where one node listens on 127.0.0.1; the same after a restart."""

    node: int
    admin: int
    ingress: int


class Nodes:
    """Starts and kills the nodes of one cluster. The process that replaces a node has its data, name and ports."""

    def __init__(self, folder: Path, identity_key_file: Path, count: int) -> None:
        self.names = tuple(f"n{number}" for number in range(1, count + 1))
        self.calls: list[Call] = []
        """All invocations that have completed, in the order of their completion."""
        self.repeats: Counter[str] = Counter()
        """Calls that were repeated on another node, by status of the response or kind of failure."""
        self._folder = folder
        self._identity_key_file = identity_key_file
        self._ports = {name: _Ports(free_port(), free_port(), free_port()) for name in self.names}
        self._servers: dict[str, RestateServer] = {}
        self._contexts: dict[str, AsyncExitStack] = {}
        self._turns = itertools.cycle(self.names)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all nodes for the time of a `with`; yields when all are members of the metadata cluster."""
        timeout = aiohttp.ClientTimeout(total=_ATTEMPT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as self._http:
            try:
                async with asyncio.TaskGroup() as starts:
                    for name in self.names:
                        starts.create_task(self.start(name))
                await self.joined()
                yield
            finally:
                async with asyncio.TaskGroup() as stops:
                    for contexts in self._contexts.values():
                        stops.create_task(contexts.aclose())

    async def start(self, name: str) -> None:
        """Start a node, with the data that it has."""
        folder, ports = self._folder / name, self._ports[name]
        folder.mkdir(exist_ok=True)
        first = name == self.names[0]
        environment: dict[str, str | None] = {
            "RESTATE_CLUSTER_NAME": "soak",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{ports.node}",
            "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{ports.node}",
            "RESTATE_AUTO_PROVISION": "true" if first else "false",
            "RESTATE_METADATA_CLIENT__ADDRESSES": json.dumps(
                [f"http://127.0.0.1:{each.node}" for each in self._ports.values()]
            ),
            "RESTATE_DEFAULT_REPLICATION": str(_REPLICATION),
            "RESTATE_DEFAULT_NUM_PARTITIONS": str(_PARTITIONS),
        }
        contexts = self._contexts[name] = AsyncExitStack()
        server = await contexts.enter_async_context(
            RestateServer.running(
                folder,
                admin_port=ports.admin,
                ingress_port=ports.ingress,
                node_name=name,
                identity_key_file=self._identity_key_file,
                env=environment,
            )
        )
        self._servers[name] = replace(server, http=self._http)

    async def end(self, name: str, number: signal.Signals) -> None:
        """End a node with this signal."""
        await self._servers[name].program.stop(number, within_seconds=_END_SECONDS)
        await self._contexts.pop(name).aclose()

    async def joined(self) -> None:
        """Wait until each node says that all are members of the metadata cluster."""
        async with asyncio.timeout(_JOIN_SECONDS):
            for server in self._servers.values():
                while True:
                    if len(await self._members(server)) == len(self.names):
                        break
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def register(self, uri: str) -> Registered:
        """Register a deployment with the cluster."""
        return await self._servers[self.names[0]].register(uri)

    async def invoke(self, service: str, handler: str, body: object = None, *, key: str | None = None) -> Invoked:
        """Call a handler through one node after the other, with one idempotency key, until one has its result."""
        idempotency_key = uuid.uuid4().hex
        started = time.monotonic()
        for name in self._turns:
            try:
                answer = await self._servers[name].invoke(
                    service, handler, body, key=key, idempotency_key=idempotency_key
                )
            except (aiohttp.ClientError, TimeoutError) as exc:
                failure = type(exc).__name__
            else:
                # A node that has just started answers 404 until it knows the services of the cluster.
                if answer.status == 200:
                    now = time.monotonic()
                    self.calls.append(Call(now, now - started))
                    return answer
                failure = str(answer.status)
            self.repeats[failure] += 1
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError("turns never end")

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows that Restate's introspection has for `sql`, of all nodes together."""
        return await self._servers[self.names[0]].query(sql)

    async def attempts(self, status: str) -> dict[tuple[str, int], int]:
        """Return how many attempts of invocations have `started` or `failed` on each node, by its name and process."""
        counts = {}
        for name, server in self._servers.items():
            async with self._http.get(f"http://127.0.0.1:{self._ports[name].node}/metrics") as response:
                text = await response.text()
            counts[name, server.program.pid] = sum(
                int(match[2]) for match in _TASKS.finditer(text) if match[1] == status
            )
        return counts

    async def _members(self, server: RestateServer) -> list[str]:
        async with self._http.get(f"{server.admin_url}/cluster-health") as response:
            if response.status != 200:
                return []
            health = await response.json()
        members: list[str] = (health["metadata_cluster_health"] or {"members": []})["members"]
        return members

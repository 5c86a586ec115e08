"""Name resolution for aiohttp, by `proxy.network.Resolver`.

aiohttp uses the first address of a host that accepts a TCP connection. Behind a broken tunnel or middlebox, an address
may accept connections and be silent then, or refuse TLS. So an address that failed comes after all others for ten
minutes.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.network.resolver import Resolver

__all__ = ["AiohttpResolver"]

_REMEMBERED_SECONDS: Final = 600.0


class AiohttpResolver(AbstractResolver):
    """aiohttp's resolver; aiohttp's own would block the exit, and use c-ares where aiodns happens to be installed."""

    def __init__(self, resolver: Resolver | None = None) -> None:
        # Like aiohttp's own resolver: no address of a family that this machine does not have. Google's hosts have both.
        self._resolver = resolver or Resolver(flags=socket.AI_ADDRCONFIG)
        self._resolved: dict[str, list[tuple[Any, ...]]] = {}
        """The addresses of each host in the order in which they were last returned."""
        self._failed_at: dict[tuple[Any, ...], float] = {}

    def is_unanswered(self, host: str) -> bool:
        """Return whether a look-up of this name is under way."""
        return self._resolver.is_unanswered(host)

    def has_failed(self, host: str, since: float) -> bool:
        """Return from now on the first address of this host after its others; return whether there are others.

        `since` is when the failed attempt began, on the loop's clock. If an address of the host has failed after that,
        it was the same one, and nothing changes.
        """
        addresses = self._resolved.get(host, [])
        if len(addresses) > 1 and all(self._failed_at.get(address, since) <= since for address in addresses):
            self._failed_at[addresses[0]] = asyncio.get_running_loop().time()
        return len(addresses) > 1

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self._resolved.pop(host, None)
        entries = await self._resolver.resolve(host, port)
        forgotten = asyncio.get_running_loop().time() - _REMEMBERED_SECONDS
        self._failed_at = {address: at for address, at in self._failed_at.items() if at > forgotten}
        entries = sorted(entries, key=lambda entry: self._failed_at.get(entry.sockaddr, forgotten))
        self._resolved[host] = [entry.sockaddr for entry in entries]
        return [
            ResolveResult(
                hostname=host,
                # aiohttp passes on only the text of an address, so a link-local one has its interface in the text.
                host=f"{sockaddr[0]}%{sockaddr[3]}" if sockaddr[3:] and sockaddr[3] else sockaddr[0],
                port=sockaddr[1],
                family=found,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, proto, _, sockaddr in entries
            if family in (socket.AF_UNSPEC, found)
        ]

    async def close(self) -> None:
        """Nothing is open: aiohttp cancels the callers, and a look-up that hangs delays nothing."""

"""Name resolution for aiohttp, by `proxy.network.Resolver`."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.network.resolver import Resolver

__all__ = ["AiohttpResolver"]


class AiohttpResolver(AbstractResolver):
    """aiohttp's resolver; aiohttp's own would block the exit, and use c-ares where aiodns happens to be installed."""

    def __init__(self) -> None:
        # Like aiohttp's own resolver: no address of a family that this machine does not have. Google's hosts have both.
        self._resolver = Resolver(flags=socket.AI_ADDRCONFIG)

    def is_unanswered(self, host: str) -> bool:
        """Return whether a look-up of this name is under way."""
        return self._resolver.is_unanswered(host)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
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
            for found, _, proto, _, sockaddr in await self._resolver.resolve(host, port)
            if family in (socket.AF_UNSPEC, found)
        ]

    async def close(self) -> None:
        """Nothing is open: aiohttp cancels the callers, and a look-up that hangs delays nothing."""

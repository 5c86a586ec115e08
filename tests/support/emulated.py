"""Tools for tests with the emulator: names that resolve to its port, a manual clock, claims and trust."""

from __future__ import annotations

import base64
import functools
import json
import socket
import ssl
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.emulator.jwts import Key

AUDIENCE = "https://greeter-abc.a.run.app"
CALLER = "caller@emulated.iam.gserviceaccount.com"
TARGET = "target@emulated.iam.gserviceaccount.com"


@functools.cache
def signing_key() -> Key:
    """Return a key for every emulated Google of this process; a new one takes 0.06 s of processor time."""
    return Key()


class Clock:
    """A clock in seconds since the epoch that only advances on demand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Names(AbstractResolver):
    """DNS that resolves every name to the emulator's TLS port."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=self._host,
                port=self._port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        pass


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return claims


def trusting(ca_file: Path, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca_file))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context

from __future__ import annotations

import socket

import pytest

from proxy.tokens.aiohttp_resolver import AiohttpResolver


@pytest.mark.asyncio
async def test_a_name_has_addresses_of_the_kind_that_is_wanted() -> None:
    lookups = AiohttpResolver()
    (found,) = await lookups.resolve("localhost", 443, socket.AF_INET)
    assert (found["hostname"], found["host"], found["port"]) == ("localhost", "127.0.0.1", 443)
    assert found["family"] == socket.AF_INET
    assert await lookups.resolve("127.0.0.1", 443, socket.AF_INET6) == []
    assert not lookups.is_unanswered("localhost")
    await lookups.close()


@pytest.mark.asyncio
async def test_a_link_local_address_keeps_its_interface() -> None:
    (found,) = await AiohttpResolver().resolve("fe80::1%lo", 80)
    assert found["host"] == f"fe80::1%{socket.if_nametoindex('lo')}"

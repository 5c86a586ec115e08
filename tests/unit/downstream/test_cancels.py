"""The budget of cancelled requests that each address has."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.connection.budget import Account, Budget
from proxy.downstream import cancels
from proxy.downstream.cancels import CancelBudgets, address_key
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from tests.support.loops import skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.sockets import client
from tests.unit.downstream.stage import listening


class Connected(asyncio.BaseTransport):
    """A transport that knows its addresses."""

    def __init__(self, peername: Any, sockname: Any = None) -> None:
        super().__init__({"peername": peername, "sockname": sockname})


@pytest.mark.parametrize(
    ("peername", "key"),
    [
        (("192.0.2.7", 50_000), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 50_000, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 50_001, 0, 0), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.7", 50_000, 0, 0), "192.0.2.7"),
        (("fe80::1%eth0", 50_000, 0, 2), "fe80::/64"),
        (("::1", 50_000, 0, 0), "::/64"),
    ],
)
def test_connections_of_one_address_or_network_have_one_key(peername: object, key: str) -> None:
    assert address_key(Connected(peername)) == key


@pytest.mark.parametrize("peername", ["", b"", None])
def test_all_clients_of_a_unix_socket_have_one_key(peername: object) -> None:
    assert address_key(Connected(peername, "/run/s")) == "unix:/run/s"


def account() -> Account:
    return Budget(1 << 20).open_account(lambda *_: None)


@with_manual_clock
async def test_new_connections_of_an_overdrawn_address_are_held_back_until_it_is_paid_back() -> None:
    budgets = CancelBudgets(asyncio.get_running_loop(), 60)
    old, new, other = account(), account(), account()
    budget = budgets.of("a")
    told: list[bool] = []
    with capture_logs() as log:
        budget.open(old, told.append)
        for _ in range(62):
            assert old.on_cancel is not None
            old.on_cancel()
    assert told == [False] * 60 + [True] * 2
    (line,) = log
    assert (line["client"], line["cancels_per_minute"], line["log_level"]) == ("a", 60, "warning")
    budgets.of("a").open(new)
    budgets.of("b").open(other)
    assert (old.held_back, new.held_back, other.held_back) == (False, True, False)
    await skip(2.9)
    assert budget.charge()
    await skip(1.0)
    assert new.held_back
    await skip(0.2)
    assert not new.held_back
    assert not budget.charge()


@with_manual_clock
async def test_a_changed_limit_holds_for_addresses_that_are_known() -> None:
    budgets = CancelBudgets(asyncio.get_running_loop(), 60)
    budget = budgets.of("a")
    budgets.per_minute = 1
    assert budgets.per_minute == 1
    with capture_logs():
        assert [budget.charge() for _ in range(2)] == [False, True]
    await skip(120.0)


@with_manual_clock
async def test_the_number_of_addresses_that_are_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancels, "_MOST_ADDRESSES", 4)
    budgets = CancelBudgets(asyncio.get_running_loop(), 60)
    connected, here = budgets.of("connected"), account()
    connected.open(here)
    first = budgets.of("0")
    for number in range(100):
        budgets.of(str(number))
    assert budgets.of("connected") is connected
    assert budgets.of("0") is not first
    connected.close(here)
    for number in range(100):
        budgets.of(str(number))
    assert budgets.of("connected") is not connected


@each_bare_engine
@pytest.mark.asyncio
async def test_a_connection_that_cancels_much_is_ended_while_its_address_is_overdrawn(make: EngineFactory) -> None:
    async with listening(make, cancels_per_minute=100) as at:
        async with client("127.0.0.1", at.port) as mild, client("127.0.0.1", at.port) as bad:
            for peer, requests in ((mild, 9), (bad, 7)):
                for _ in range(requests):
                    stream = peer.open("/svc/x", end=True)
                    (await at.relay.request()).answer(b"")
                    await peer.response(stream)
            accounts = [account for account, _ in at.listener.clients()]
            with capture_logs():
                for _ in range(100):
                    assert at.listener.cancels.of("127.0.0.1").charge() is False
                for account in accounts:
                    assert account.on_cancel is not None
                    account.on_cancel()
            assert (await bad.went_away).error_code == ErrorCode.ENHANCE_YOUR_CALM
            await bad.closed
            assert await mild.ping()
            assert not mild.went_away.done()
        assert at.counts.cut_off == [(0xB, "too many requests are cancelled (cancels_per_minute)")]
        async with client("127.0.0.1", at.port) as new:
            await new.ping()
            assert [account.held_back for account, _ in at.listener.clients()] == [True]


@each_bare_engine
@pytest.mark.asyncio
async def test_new_streams_of_a_connection_that_is_ended_are_refused(make: EngineFactory) -> None:
    async with listening(make, cancels_per_minute=100) as at, client("127.0.0.1", at.port) as bad:
        bad.open("/svc/x", end=True)
        await at.relay.request()
        with capture_logs():
            for _ in range(100):
                at.listener.cancels.of("127.0.0.1").charge()
            ((account, _),) = at.listener.clients()
            assert account.on_cancel is not None
            account.on_cancel()
            account.on_cancel()
        bad.open("/svc/late", end=True)
        await bad.closed
        assert at.relay.requests.empty()
        assert len(at.counts.cut_off) == 1


@each_bare_engine
@pytest.mark.asyncio
async def test_an_account_keeps_no_connection_in_memory_that_has_ended(make: EngineFactory) -> None:
    """A request that is cancelled may have its account as owner for minutes: its reset waits for its turn."""
    async with listening(make) as at, client("127.0.0.1", at.port) as peer:
        peer.open("/svc/x", end=True)
        await at.relay.request()
        [account] = [one for one, _ in at.listener.clients()]
        ended = [weakref.ref(connection) for connection in at.listener.connections()]
    gc.collect()
    assert [one() for one in ended] == [None]
    assert account.octets == 0


@pytest.mark.asyncio
async def test_an_account_keeps_no_exchange_of_http1_in_memory_that_has_ended() -> None:
    async with listening() as at:
        _, writer = await at.raw(b"POST /svc/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nthere")
        request = await at.relay.request()
        [account] = [one for one, _ in at.listener.clients()]
        ended = [weakref.ref(stream) for _, (stream,) in at.listener.clients()]
        writer.transport.abort()
        await request.reset
        del request
    gc.collect()
    assert [one() for one in ended] == [None]
    assert account.octets == 0

"""Accounts in Restate, clients that use them, and what must be in the accounts at the end.

Each account is a virtual object: its balance and the number of entries are state, so an entry that is lost or made
twice shows. A transfer takes several steps; money is neither made nor lost by it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypedDict, cast

import restate

from proxy.emulator.cloud_run import Application
from tests.support.restate_server import Invoked

__all__ = ["Clients", "Restate", "bank"]

_ACCOUNTS = 200
"""Restate lets one invocation of an account run at a time, so the number limits how many run together."""
_MOST_OCTETS = 40_000
_IN_FLIGHT = 1_000


class Restate(Protocol):
    """What clients need of a server or a cluster."""

    async def invoke(self, service: str, handler: str, body: object = None, *, key: str | None = None) -> Invoked:
        """Call a handler and return its result."""

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows that Restate's introspection has for `sql`."""


class Transfer(TypedDict):
    """An order of `Transfers/move`."""

    source: str
    target: str
    amount: int


def bank() -> Application:
    """Return an ASGI application with the services."""
    account = restate.VirtualObject("Account")

    @account.handler()
    async def enter(ctx: restate.ObjectContext, amount: int) -> int:
        balance = (await ctx.get("balance", type_hint=int) or 0) + amount
        entries = (await ctx.get("entries", type_hint=int) or 0) + 1
        checked = await ctx.run_typed("check", lambda: balance)
        ctx.set("balance", checked)
        ctx.set("entries", entries)
        return checked

    transfers = restate.Service("Transfers", inactivity_timeout=timedelta(milliseconds=200))

    @transfers.handler()
    async def move(ctx: restate.Context, order: Transfer) -> str:
        await ctx.object_call(enter, key=order["source"], arg=-order["amount"])
        await ctx.sleep(timedelta(milliseconds=300))  # it suspends
        await ctx.object_call(enter, key=order["target"], arg=order["amount"])
        return "moved"

    letters = restate.Service("Letters")

    @letters.handler()
    async def copy(ctx: restate.Context, text: str) -> str:
        return await ctx.run_typed("copy", lambda: text)

    return cast(Application, restate.app(services=[account, transfers, letters]))


@dataclass
class Clients:
    """Invoke the services at a rate, and note what must come of it."""

    restate: Restate
    chance: random.Random
    per_second: float
    started: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    balances: Counter[str] = field(default_factory=Counter)
    entries: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Start invocations until `stop`, and wait until all are complete."""
        slots = asyncio.Semaphore(_IN_FLIGHT)
        async with asyncio.TaskGroup() as tasks:
            while not self._over.is_set():
                await slots.acquire()
                tasks.create_task(self._invoke()).add_done_callback(lambda _: slots.release())
                try:
                    async with asyncio.timeout(self.chance.expovariate(self.per_second)):
                        await self._over.wait()
                except TimeoutError:
                    pass

    def stop(self) -> None:
        """Start no more invocations."""
        self._over.set()

    async def check(self) -> None:
        """Compare all accounts with what was entered, and see that Restate has nothing left to do."""
        state: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for row in await self.restate.query("select service_key, key, value_utf8 from state"):
            state[row["service_key"]][row["key"]] = int(row["value_utf8"])
        for account in sorted(state.keys() | self.entries.keys()):
            expected = {"balance": self.balances[account], "entries": self.entries[account]}
            if state[account] != expected:
                self.wrong.append(f"account {account} has {state[account]}, and must have {expected}")
        rows = await self.restate.query("select id, status from sys_invocation where status != 'completed'")
        self.wrong += [f"Restate has not completed {row['id']}: {row['status']}" for row in rows]

    async def _invoke(self) -> None:
        kind = self.chance.choices(("enter", "move", "copy"), (6, 2, 2))[0]
        self.started[kind] += 1
        one, other = (str(self.chance.randrange(_ACCOUNTS)) for _ in range(2))
        amount = self.chance.randint(1, 1000)
        if kind == "enter":
            answer = await self.restate.invoke("Account", "enter", amount, key=one)
            self._enter(one, amount)
            expected = answer.value  # it depends on others; `check` sees whether it is right
        elif kind == "move":
            order = {"source": one, "target": other, "amount": amount}
            answer = await self.restate.invoke("Transfers", "move", order)
            self._enter(one, -amount)
            self._enter(other, amount)
            expected = "moved"
        else:
            expected = "abcdefgh" * (self.chance.randint(0, _MOST_OCTETS) // 8)
            answer = await self.restate.invoke("Letters", "copy", expected)
        if answer == Invoked(200, expected):
            self.completed[kind] += 1
        else:
            self.wrong.append(f"{kind} was answered with {answer.status}: {str(answer.value)[:200]}")

    def _enter(self, account: str, amount: int) -> None:
        self.balances[account] += amount
        self.entries[account] += 1

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.tokens.gate import Gate, mints_for_discovery


class Callers:
    """Tasks that have a place of a gate until `leave` is set; `inside` has the names of those, in their order."""

    def __init__(self, gate: Gate, tasks: asyncio.TaskGroup) -> None:
        self.inside: list[str] = []
        self.leave = asyncio.Event()
        self._gate = gate
        self._tasks = tasks

    async def come(self, name: str, *, discovery: bool = False) -> asyncio.Task[None]:
        async def call() -> None:
            mints_for_discovery.set(discovery)
            async with self._gate.place():
                self.inside.append(name)
                await self.leave.wait()

        task = self._tasks.create_task(call())
        await turns()
        return task


async def turns() -> None:
    """Let every task go on until it waits for another one."""
    for _ in range(5):
        await asyncio.sleep(0)


async def with_callers(places: int, test: Callable[[Callers], Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        callers = Callers(Gate(places), tasks)
        try:
            await test(callers)
        finally:
            callers.leave.set()


@pytest.mark.asyncio
async def test_discoveries_have_half_of_the_places_and_others_all_that_are_left() -> None:
    async def test(callers: Callers) -> None:
        for number in range(5):
            await callers.come(f"discovery {number}", discovery=True)
        assert callers.inside == ["discovery 0", "discovery 1"]
        for number in range(3):
            await callers.come(f"first mint {number}")
        assert callers.inside[2:] == ["first mint 0", "first mint 1"]
        callers.leave.set()
        await turns()
        assert sorted(callers.inside[4:]) == ["discovery 2", "discovery 3", "discovery 4", "first mint 2"]

    await with_callers(4, test)


@pytest.mark.asyncio
async def test_others_may_have_all_places() -> None:
    async def test(callers: Callers) -> None:
        for number in range(5):
            await callers.come(str(number))
        assert callers.inside == ["0", "1", "2", "3"]

    await with_callers(4, test)


@pytest.mark.asyncio
@pytest.mark.parametrize(("given_up", "served"), [("first", ["first", "second"]), ("second", ["first", "third"])])
async def test_a_discovery_that_is_given_up_leaves_its_place(given_up: str, served: list[str]) -> None:
    async def test(callers: Callers) -> None:
        tasks = {name: await callers.come(name, discovery=True) for name in ("first", "second")}
        tasks[given_up].cancel()
        await callers.come("third", discovery=True)
        (tasks["first"] if given_up == "second" else tasks["second"]).cancel()
        await turns()
        assert callers.inside[:2] == served

    await with_callers(2, test)

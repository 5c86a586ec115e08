"""Sample Restate services, one for each way in which an invocation can go."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import cast

import restate

from proxy.emulator.cloud_run import Application

__all__ = ["sample_services"]


def sample_services() -> Application:
    """Return an ASGI application with fresh services.

    ======================  =====================================================================
    `Greeter/greet`         plain: a name in, a greeting out
    `Counter/{key}/add`     stateful: adds to the key's total and returns it
    `Sleeper/nap`           takes a step, sleeps so many seconds (and suspends meanwhile), takes another
    `Worker/work`           is at work for so many seconds, in one step, and says so
    `Trouble/refuse`        fails for good, with status 418 and the text that it was given
    `Trouble/recover`       fails so many times, then returns how many attempts it took
    `Echo/echo`             returns the text that it was given, however long
    ======================  =====================================================================
    """
    services: list[restate.Service | restate.VirtualObject] = [
        _greeter(),
        _counter(),
        _sleeper(),
        _worker(),
        _trouble(),
        _echo(),
    ]
    return cast(Application, restate.app(services=services))


def _greeter() -> restate.Service:
    greeter = restate.Service("Greeter")

    @greeter.handler()
    async def greet(ctx: restate.Context, name: str) -> str:
        return f"Hello, {name}!"

    return greeter


def _counter() -> restate.VirtualObject:
    counter = restate.VirtualObject("Counter")

    @counter.handler()
    async def add(ctx: restate.ObjectContext, amount: int) -> int:
        total = (await ctx.get("total", type_hint=int) or 0) + amount
        ctx.set("total", total)
        return total

    return counter


def _sleeper() -> restate.Service:
    # Restate asks for suspension after this time without a message, instead of after a minute.
    sleeper = restate.Service("Sleeper", inactivity_timeout=timedelta(milliseconds=100))

    @sleeper.handler()
    async def nap(ctx: restate.Context, seconds: float) -> list[str]:
        before = await ctx.run_typed("before", lambda: "fell asleep")
        await ctx.sleep(timedelta(seconds=seconds))
        after = await ctx.run_typed("after", lambda: "woke up")
        return [before, after]

    return sleeper


def _worker() -> restate.Service:
    worker = restate.Service("Worker")

    @worker.handler()
    async def work(ctx: restate.Context, seconds: float) -> str:
        async def step() -> str:
            await asyncio.sleep(seconds)
            return "done"

        return await ctx.run_typed("work", step)

    return worker


def _trouble() -> restate.Service:
    trouble = restate.Service("Trouble")
    attempts: Counter[str] = Counter()

    @trouble.handler()
    async def refuse(ctx: restate.Context, text: str) -> None:
        raise restate.TerminalError(text, status_code=418)

    @trouble.handler()
    async def recover(ctx: restate.Context, failures: int) -> int:
        attempts[ctx.request().id] += 1
        if attempts[ctx.request().id] <= failures:
            raise RuntimeError("not yet")
        return attempts[ctx.request().id]

    return trouble


def _echo() -> restate.Service:
    echo = restate.Service("Echo")

    @echo.handler(name="echo")
    async def repeat(ctx: restate.Context, text: str) -> str:
        return text

    return echo

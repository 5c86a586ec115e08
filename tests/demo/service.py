"""The service of the demo: a Restate handler with several steps, and a log line for every request to the container."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import timedelta
from typing import TypedDict, cast

import restate

from proxy.emulator.cloud_run import Application
from tests.support.container import Recorder, Seen

__all__ = ["SEEN", "app"]

SEEN = "the container saw "
"""The prefix of a line about a request; JSON follows."""

greeter = restate.VirtualObject("Greeter")


class Greeting(TypedDict):
    """What `greet` returns."""

    greeting: str
    visits: int
    steps: list[str]


@greeter.handler()
async def greet(ctx: restate.ObjectContext) -> Greeting:
    """Greet the person in the key: count the visit, wait a moment, and write the greeting."""
    visits = (await ctx.get("visits", type_hint=int) or 0) + 1
    ctx.set("visits", visits)
    counted = await ctx.run_typed("count", lambda: f"counted visit {visits}")
    await ctx.sleep(timedelta(milliseconds=200))
    written = await ctx.run_typed("write", lambda: f"wrote to {ctx.key()}")
    return {
        "greeting": f"Hello, {ctx.key()}!" if visits == 1 else f"Welcome back, {ctx.key()}!",
        "visits": visits,
        "steps": [counted, "slept for 200 ms", written],
    }


def log_request(seen: Seen) -> None:
    """Write one line about a request, without its other fields."""
    note = {name: value for name, value in asdict(seen).items() if name != "fields"}
    sys.stdout.write(f"{SEEN}{json.dumps(note)}\n")
    sys.stdout.flush()


app = Recorder(cast(Application, restate.app(services=[greeter])), log_request)

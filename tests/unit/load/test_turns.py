"""The turns of an event loop are measured in processor time, without waits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from tests.load.turns import Turns
from tests.support.processes import program

COMPUTING: Final = 0.05
WAITING: Final = 0.5

PROGRAM: Final = f"""
import asyncio, sys, threading, time

def compute():
    until = time.thread_time() + {COMPUTING}
    while time.thread_time() < until:
        pass

async def main():
    await asyncio.sleep(0)
    if sys.argv[2] == "thread":
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    else:
        compute()
    await asyncio.sleep(0)
    time.sleep({WAITING})
    await asyncio.sleep(0)
    print("done", flush=True)
    await asyncio.Event().wait()

with asyncio.Runner(loop_factory=__import__(sys.argv[1]).new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.asyncio
@pytest.mark.parametrize(("library", "where"), [("asyncio", "loop"), ("uvloop", "loop"), ("uvloop", "thread")])
async def test_the_longest_turn_is_what_the_process_computed_between_two_looks_at_its_sockets(
    library: str, where: str, tmp_path: Path
) -> None:
    turns = await Turns.create(tmp_path)
    argv = [sys.executable, "-c", PROGRAM, library, where]
    async with program("turns", argv, env=turns.environment) as running:
        await running.line("^done$")
        measured = turns.measured(running.pid)
        turns.forget(running.pid)
        later = turns.measured(running.pid)
    assert measured.number >= 2
    assert COMPUTING <= measured.longest_us / 1e6 < WAITING
    assert later.longest_us < measured.longest_us

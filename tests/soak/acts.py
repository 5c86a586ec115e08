"""What goes wrong during a soak, one after the other, in an order by seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from proxy.emulator import Fault, Google
from tests.soak.network import Hop
from tests.soak.sidecars import Sidecars

__all__ = ["Acts"]

Act: TypeAlias = Callable[[], Awaitable[None]]

_FAULTS = (Fault.SERVER_ERROR, Fault.TOO_MANY_REQUESTS, Fault.HANG, Fault.RESET, Fault.JUNK)


@dataclass
class Acts:
    """Everything that can go wrong. `before` is the hop to the sidecar, `behind` that from it to Cloud Run."""

    sidecars: Sidecars
    before: Hop
    behind: Hop
    google: Google
    chance: random.Random
    workers: int
    restarts: bool = True
    pace: float = 1.0
    """What all durations are multiplied with."""
    done: Counter[str] = field(default_factory=Counter)

    async def run(self, until: float) -> None:
        """Do everything once, and again until this time on the loop's clock; whole rounds.

        In each round, what replaces processes comes first: the last process lives through all that follows.
        """
        loop = asyncio.get_running_loop()
        while True:
            replacing = self._replacing() if self.restarts else {}
            for acts in (replacing, self._others()):
                for name in self.chance.sample(sorted(acts), len(acts)):
                    await acts[name]()
                    self.done[name] += 1
                    await self._sleep(0.2, 1.5)
            if loop.time() >= until:
                return

    def _replacing(self) -> dict[str, Act]:
        acts: dict[str, Act] = {
            "sidecar taken over": self.sidecars.take_over,
            "sidecar restarted": self.sidecars.restart,
            "sidecar killed": self.sidecars.kill,
        }
        if self.workers > 1:
            acts["worker killed"] = partial(self.sidecars.kill_worker, self.workers)
        return acts

    def _others(self) -> dict[str, Act]:
        acts: dict[str, Act] = {"mint outage": self._mint_outage, "upstream down": self._upstream_down}
        for name, hop in (("before the sidecar", self.before), ("behind the sidecar", self.behind)):
            acts |= {
                f"connections cut {name}": partial(self._cut, hop),
                f"network slow {name}": partial(self._slow, hop),
                f"network stalled {name}": partial(self._stalled, hop),
                f"network dribbling {name}": partial(self._dribbling, hop),
            }
        return acts

    async def _sleep(self, least_seconds: float, most_seconds: float) -> None:
        await asyncio.sleep(self.pace * self.chance.uniform(least_seconds, most_seconds))

    async def _cut(self, hop: Hop) -> None:
        for _ in range(3):
            hop.cut(0.5, self.chance)
            await self._sleep(0.05, 0.4)

    async def _slow(self, hop: Hop) -> None:
        hop.delay_seconds = self.chance.uniform(0.02, 0.2)
        await self._sleep(1.0, 3.0)
        hop.delay_seconds = 0.0

    async def _stalled(self, hop: Hop) -> None:
        hop.stall(True)
        await self._sleep(0.5, 3.0)
        hop.stall(False)

    async def _dribbling(self, hop: Hop) -> None:
        hop.dribbles = True
        await self._sleep(1.0, 3.0)
        hop.dribbles = False

    async def _mint_outage(self) -> None:
        self.google.fail("metadata", self.chance.choice(_FAULTS))
        await self._sleep(2.0, 5.0)
        self.google.fail("metadata", None)

    async def _upstream_down(self) -> None:
        self.behind.stop()
        await self._sleep(0.5, 2.0)
        await self.behind.start()

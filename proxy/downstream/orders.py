"""What the parent of worker processes tells them: to drain, or to cut what is left."""

from __future__ import annotations

import os
from enum import IntEnum
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

__all__ = ["Order", "Orders"]


class Order(IntEnum):
    """What a worker has to do."""

    SERVE = 0
    DRAIN = 1
    CUT = 2


class Orders:
    """What the parent tells all workers. It is memory that they share, without a lock: a worker that is killed while it
    looked would leave that taken.
    """

    def __init__(self, context: SpawnContext) -> None:
        self._order: Any = context.RawValue("b", Order.SERVE)

    @property
    def latest(self) -> Order:
        """The last order; DRAIN at least where the process that gives them is gone."""
        order = Order(self._order.value)
        parent = parent_process()
        return max(order, Order.DRAIN) if parent is not None and os.getppid() != parent.pid else order

    def drain(self) -> None:
        """Order to drain, unless more was ordered."""
        self._order.value = max(self._order.value, Order.DRAIN)

    def end(self) -> None:
        """Order to drain, or to cut if the order to drain has been given."""
        self._order.value = Order.DRAIN if self._order.value == Order.SERVE else Order.CUT

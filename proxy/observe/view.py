"""What metrics and status page show: the state of one worker, or that of several as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.observe.combined import Combined, Group
from proxy.observe.health import RouteHealth
from proxy.observe.history import History
from proxy.observe.live import Live
from proxy.observe.metrics import Metrics

__all__ = ["View"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Counters and state, by what knows them."""

    metrics: Metrics
    """What was counted."""
    health: RouteHealth | Combined
    """The trouble of each route, and the last failures."""
    history: History | Combined
    """The last minutes."""
    live: Live
    """The state of other rooms."""
    started_at: float
    """When it began, in seconds since the epoch."""
    process: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the processes of several workers, added up; empty for one worker."""
    group: Group | None = None
    """The workers; None for one worker."""

    @classmethod
    def of(cls, combined: Combined) -> View:
        """Return the view of several workers."""
        group = combined.group
        return cls(
            metrics=combined.metrics,
            health=combined,
            history=combined,
            live=combined,
            started_at=group.started_at,
            process=combined.process,
            group=group,
        )

"""What the sidecar is held to, as ratios to its peers in the same run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.load.figures import Summary, ratio

__all__ = ["COMPILED", "PLAIN", "PORTABLE", "TARGETS", "Target", "Verdict", "judge"]

COMPILED: Final = "sidecar-nghttp2"
PORTABLE: Final = "sidecar-h2"
PLAIN: Final = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """subject ÷ peer of one metric at one workload, at most so much."""

    what: str
    workload: str
    metric: str
    subject: str = COMPILED
    peer: str = ""
    at_most: float = 1.0
    peer_metric: str | None = None
    """What of the peer it is compared with; None: the same metric."""
    limit: float | None = None
    """A figure in the unit of the metric that it is compared with instead of a peer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says to a target; `ratio` None: the run cannot say, because one side is absent or void."""

    target: Target
    ratio: float | None

    @property
    def mark(self) -> str:
        """✔ met, ✘ missed, – not measured."""
        if self.ratio is None:
            return "–"
        return "✔" if self.ratio <= self.target.at_most else "✘"


_UNARY: Final = "CPU per request, POST 1 KiB, -c1 -m50"
_DOWN: Final = "CPU per MiB, download of 16 MiB"

TARGETS: Final = (
    Target(what=_UNARY, workload="unary", metric="cpu_us", peer="nghttpx", at_most=1.0),
    Target(
        what="the same with Restate's nine fields", workload="restate", metric="cpu_us", peer="nghttpx", at_most=1.0
    ),
    Target(what="the same, -c8 -m16", workload="several", metric="cpu_us", peer="nghttpx", at_most=1.0),
    Target(what=_UNARY, workload="unary", metric="cpu_us", peer="envoy", at_most=0.35),
    Target(what=_UNARY, workload="unary", metric="cpu_us", peer="cloud-run-proxy", at_most=0.20),
    Target(what="the same, -c200 -m1", workload="crowd", metric="cpu_us", peer="nghttpx", at_most=1.2),
    Target(what="p50 at one in flight", workload="single", metric="p50_us", peer="envoy", at_most=0.75),
    Target(what="CPU per round trip, 1 stream", workload="ping-pong-1", metric="cpu_us", peer="envoy", at_most=1.0),
    Target(what="CPU per MiB, upload of 16 MiB", workload="upload", metric="cpu_us", peer="envoy", at_most=1.05),
    Target(what=_DOWN, workload="download", metric="cpu_us", peer="envoy", at_most=1.05),
    Target(what="RSS idle", workload="memory", metric="rss_mib", peer="envoy", at_most=0.65),
    Target(what="RSS per open idle stream", workload="memory", metric="stream_kib", peer="nghttpx", at_most=0.5),
    Target(
        what="p99 while a token is refreshed",
        workload="refresh",
        metric="refresh_p99_us",
        peer=COMPILED,
        peer_metric="p99_us",
        at_most=1.25,  # the same, but for the noise in the hundredth part of some thousand requests
    ),
    Target(what="longest turn while metrics are read", workload="scrape", metric="turn_us", limit=2000.0),
    Target(what=_UNARY, workload="unary", metric="cpu_us", subject=PORTABLE, peer=PLAIN, at_most=0.6),
    Target(what=_DOWN, workload="download", metric="cpu_us", subject=PORTABLE, peer=PLAIN, at_most=1.05),
)
"""The sidecar has one worker, every feature on, access log off."""


def judge(summaries: Mapping[str, Mapping[str, Summary]]) -> list[Verdict]:
    """Return a verdict for each target, in order."""
    return [Verdict(target, _ratio(target, summaries.get(target.workload, {}))) for target in TARGETS]


def _ratio(target: Target, summaries: Mapping[str, Summary]) -> float | None:
    if target.limit is None:
        return ratio(summaries, target.metric, target.subject, target.peer, target.peer_metric)
    found = summaries[target.subject].values.get(target.metric) if target.subject in summaries else None
    return None if found is None else found / target.limit

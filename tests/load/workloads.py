"""What is asked of every proxy, and which figures come of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.load.h2load import Load

__all__ = [
    "BODY_OCTETS",
    "KEYS",
    "MEMORY",
    "PING_PONGS",
    "REFRESH",
    "SCRAPE",
    "SCRAPED_ROUTES",
    "SMALL_OCTETS",
    "Kind",
    "LoadKind",
    "Plan",
    "StreamsKind",
    "load_kinds",
]

SMALL_OCTETS: Final = 1024
BODY_OCTETS: Final = 16 << 20
SCRAPED_ROUTES: Final = 5_000

_THROUGHPUT: Final = ("cpu_us", "rate", "p50_us", "p99_us", "busy")
_LATENCY: Final = ("p50_us", "added_p50_us", "p99_us", "added_p99_us", "cpu_us")

_AS_RESTATE: Final = (
    "content-type: application/vnd.restate.invocation.v6",
    "accept: application/vnd.restate.invocation.v6",
    "user-agent: restate/1.7.12",
    "x-restate-server: restate-server/1.7.12",
    "x-restate-invocation-id: inv_1gCh3gRyTUqC2X8NX6Yv2pJ0WkQ7mS5aZb",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "authorization: Bearer of-the-application",
    "x-restate-signature-scheme: v1",
    "x-restate-jwt-v1: " + "eyJhbGciOiJFZERTQSJ9." * 16,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A workload as the report sees it."""

    key: str
    title: str
    unit: str = "request"
    """What CPU and rate count."""
    columns: Sequence[str] = _THROUGHPUT
    """Metric keys; the first is the one that is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadKind(Kind):
    """One that h2load makes, in front of the static upstream."""

    load: Load
    path: str
    units: float = 1.0
    """How many units a request counts for."""
    first: int = 300
    """Requests of the first, unmeasured run, which opens connections, mints the token and tells the speed."""
    direct: bool = False
    """Whether it runs without a proxy too."""
    narrow: bool = False
    """Whether it is for the upstream whose windows are 64 KiB."""
    connected: bool = False
    """Whether its CPU counts from when every connection has had one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsKind(Kind):
    """Messages that bounce on open streams, in front of the echo upstream."""

    streams: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything."""

    rounds: int
    seconds: float
    """Length of a measured run; how many requests that is, is found out for each proxy."""
    memory_rounds: int
    memory_connections: int
    memory_streams: int
    """On each connection."""
    refresh_seconds: int
    scrapes: int

    @classmethod
    def full(cls) -> Plan:
        """Some twenty minutes with seven contenders."""
        return cls(
            rounds=5,
            seconds=1.8,
            memory_rounds=3,
            memory_connections=100,
            memory_streams=100,
            refresh_seconds=30,
            scrapes=5,
        )

    @classmethod
    def quick(cls) -> Plan:
        """Less than three minutes; good to a few per cent, but for the p99."""
        return cls(
            rounds=3,
            seconds=0.2,
            memory_rounds=1,
            memory_connections=20,
            memory_streams=100,
            refresh_seconds=6,
            scrapes=1,
        )


def load_kinds(small: Path, body: Path) -> list[LoadKind]:
    """Return the workloads of h2load; `small` and `body` are the files of 1 KiB and 16 MiB that it sends."""
    post = Load(connections=1, streams=50, body=small)
    pull, push = Load(connections=1, streams=2), Load(connections=1, streams=2, body=body)
    narrow_pull = Load(connections=1, streams=2, window_bits=16)
    unary, whole = "/bench/small", "/bench/body"
    mebibytes = BODY_OCTETS / (1 << 20)
    return [
        LoadKind(key="unary", title="POST 1 KiB, 1 connection, 50 in flight", load=post, path=unary, direct=True),
        LoadKind(
            key="several",
            title="POST 1 KiB, 8 connections, 16 in flight on each",
            load=Load(connections=8, streams=16, body=small),
            path=unary,
        ),
        LoadKind(
            key="single",
            title="POST 1 KiB, one in flight",
            load=Load(connections=1, streams=1, body=small),
            path=unary,
            columns=_LATENCY,
            direct=True,
        ),
        LoadKind(
            key="crowd",
            title="POST 1 KiB, 200 connections, one in flight on each",
            load=Load(connections=200, streams=1, body=small),
            path=unary,
            first=600,
            connected=True,
        ),
        LoadKind(
            key="restate",
            title="POST 1 KiB with the nine fields that Restate adds, 1 connection, 50 in flight",
            load=Load(connections=1, streams=50, body=small, fields=_AS_RESTATE),
            path=unary,
        ),
        LoadKind(
            key="upload",
            title="Upload of 16 MiB, 2 at a time",
            unit="MiB",
            load=push,
            path=unary,
            units=mebibytes,
            first=2,
        ),
        LoadKind(
            key="download",
            title="Download of 16 MiB, 2 at a time",
            unit="MiB",
            load=pull,
            path=whole,
            units=mebibytes,
            first=2,
        ),
        LoadKind(
            key="upload-64k",
            title="Upload of 16 MiB, 2 at a time, the upstream's windows 64 KiB",
            unit="MiB",
            load=push,
            path=unary,
            units=mebibytes,
            first=2,
            narrow=True,
        ),
        LoadKind(
            key="download-64k",
            title="Download of 16 MiB, 2 at a time, the client's windows 64 KiB",
            unit="MiB",
            load=narrow_pull,
            path=whole,
            units=mebibytes,
            first=2,
            narrow=True,
        ),
    ]


PING_PONGS: Final = (
    StreamsKind(key="ping-pong-1", title="64 octets there and back, 1 stream", unit="round trip", streams=1),
    StreamsKind(key="ping-pong-100", title="64 octets there and back, 100 streams", unit="round trip", streams=100),
)
MEMORY: Final = Kind(
    key="memory", title="Resident memory: idle, and for each open idle stream", columns=("rss_mib", "stream_kib")
)
REFRESH: Final = Kind(
    key="refresh",
    title="POST 1 KiB, 1,000 a second, tokens good for 4 s: requests within 250 ms of a refresh, and all others",
    columns=("refresh_p99_us", "p99_us", "refreshes", "cpu_us"),
)
SCRAPE: Final = Kind(
    key="scrape",
    title=f"64 octets there and back, 1 stream, while the metrics of {SCRAPED_ROUTES:,} routes are read",
    columns=("turn_us", "quiet_turn_us", "scrape_p99_us", "p99_us", "scrape_us"),
)

KEYS: Final = tuple(kind.key for kind in (*load_kinds(Path(), Path()), *PING_PONGS, MEMORY, REFRESH, SCRAPE))
"""The names of all workloads."""

"""Cases for the relay: made at random, or of kept ones that are changed; and the ones that are kept.

What a case makes the sidecar do is told in features: which statuses, resets, refusals and failures came of it. A case
with a feature that no other has had is worth keeping: `corpus.txt` has the shortest that were found, and the next run
goes on from them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Final

from proxy.http2.choice import EngineFactory
from proxy.http2.events import Fields
from proxy.routes.open_routes import ID_TOKEN_FIELD
from tests.fuzz.relay import KINDS, LIMITS, OPEN_HOST, Relay, Step
from tests.fuzz.traffic import Lane, Peer, frame, mutate, split
from tests.support.peers.raw import PREFACE

__all__ = ["CORPUS", "Corpus", "decoded", "encoded", "fuzz", "run_case"]

CORPUS: Final = Path(__file__).with_name("corpus.txt")
"""A case a line."""

_SETTINGS: Final = 4
_MOST_STEPS: Final = 60
_MOST_OCTETS: Final = 4_000
"""Of a case that is kept, as it stands in the file."""

_FRESH: Final = 0.3
"""Part of the cases that are made at random; the others are kept ones that are changed."""

_PATHS: Final = (
    b"/svc/invoke/S/h",
    b"/svc/discover",
    b"/svc",
    b"/neighbour/x",
    b"/nowhere",
    b"/svc/../x",
    b"/svc%2f",
    b"*",
)
_MORE: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-serverless-authorization", b"Bearer spoofed"),
    (b"x_serverless_authorization", b"Bearer spoofed"),
    (b"via", b"2.0 cloudrun-sidecar-0123456789abcdef"),
    (b"authorization", b"Bearer theirs"),
    (b"content-length", b"5"),
    (b"expect", b"100-continue"),
    (b"te", b"trailers"),
    (b"x-large", b"x" * 9_000),
    (ID_TOKEN_FIELD.encode(), b"false"),
    (b"x-cloudrun-sidecar-gcp-audience", b"https://stolen.example"),
)
_STATUSES: Final = (b"200", b"200", b"200", b"204", b"304", b"401", b"403", b"429", b"503", b"100", b"999", b"20")


class HostileClient(Peer):
    """Sends requests that the relay has something to decide about."""

    def head(self) -> list[bytes]:
        rng = self.rng
        last = self.lanes[-1].stream_id if self.lanes else -1
        lane = Lane(last + 2, head=True, room=self.limits.stream_window_octets)
        self.lanes.append(lane)
        path, authority = rng.choice((*_PATHS[:2] * 4, *_PATHS)), b"sidecar:9081"
        if rng.random() < 0.1:
            path, authority = rng.choice(((f"/{OPEN_HOST}/x".encode(), authority), (b"/x", OPEN_HOST.encode())))
        head: Fields = [
            (b":method", rng.choice((b"POST", b"POST", b"POST", b"GET", b"HEAD", b"TRACE")), False),
            (b":scheme", b"http", False),
            (b":authority", authority, False),
            (b":path", path, False),
        ]
        head += [(*one, False) for one in rng.sample(_MORE, rng.choice((0, 0, 0, 1, 2)))]
        return self.section(lane, self.fields(head), end=rng.random() < 0.4)


class HostileService(Peer):
    """Answers requests; `hear` tells it of those that have arrived."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng, LIMITS, [1])
        self.lanes = []

    def hear(self, streams: Iterable[int]) -> None:
        known = {lane.stream_id for lane in self.lanes}
        self.lanes += [
            Lane(stream_id, room=LIMITS.stream_window_octets) for stream_id in streams if stream_id not in known
        ]

    def head(self) -> list[bytes]:
        rng = self.rng
        waiting = [lane for lane in self.lanes if not (lane.head or lane.ended)]
        if not waiting:
            return []
        lane = rng.choice(waiting)
        status = rng.choice(_STATUSES)
        lane.head = status >= b"2"
        return self.section(lane, self.fields([(b":status", status, False)]), end=lane.head and rng.random() < 0.3)


def run_case(make: EngineFactory, steps: Sequence[Step]) -> set[str]:
    """Play a case and return its features; AssertionError if anything is wrong."""
    relay = Relay(make)
    relay.run_case(steps)
    return relay.features


def generate(make: EngineFactory, rng: Random, steps: list[Step]) -> None:
    """Add the steps of a new case, and play each: what both sides send follows from what they receive."""
    relay = Relay(make)

    def take(kind: str, data: bytes = b"") -> None:
        steps.append(Step(kind, data))
        relay.play(steps[-1])

    client, service = HostileClient(rng, LIMITS, []), HostileService(rng)
    ends: tuple[object, object] = (None, None)
    try:
        for _ in range(rng.randrange(5, _MOST_STEPS)):
            before, ends = ends, relay.ends()
            if ends[0] is None:
                client = HostileClient(rng, LIMITS, [])
                take("client", PREFACE + client.settings({}) + frame(_SETTINGS, 1, 0))
            if ends[1] is not None and ends[1] is not before[1]:
                service = HostileService(rng)
                take("service", service.settings({}) + frame(_SETTINGS, 1, 0))
            kind = rng.choice(("client",) * 8 + ("service",) * 10 + ("settle",) * 8 + KINDS[2:])
            if kind == "service" and relay.ends()[1] is not None:
                service.hear(getattr(relay.ends()[1], "streams", ()))
            if kind in ("client", "service"):
                side: Peer = client if kind == "client" else service
                made = [one for _ in range(rng.randrange(1, 4)) for one in rng.choice(_actions(side))()]
                take(kind, b"".join(mutate(rng, made) if rng.random() < 0.15 else made))
            else:
                take(kind)
    finally:
        relay.close()


def _actions(side: Peer) -> tuple[Callable[[], list[bytes]], ...]:
    return (side.head, side.head, side.data, side.data, side.end, side.other)


def changed(rng: Random, steps: Sequence[Step], others: Sequence[Sequence[Step]]) -> list[Step]:
    """Return a case that is like another one, but for a few changes."""
    found = list(steps)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        place = rng.randrange(len(found)) if found else 0
        match rng.randrange(6):
            case 0 if found:
                del found[place]
            case 1 if found:
                found.insert(rng.randrange(len(found)), found[place])
            case 2:
                found.insert(place, Step(rng.choice(KINDS[2:])))
            case 3 if others:
                other = rng.choice(others)
                found = [*found[:place], *other[rng.randrange(len(other)) :]] if other else found
            case _:
                with_octets = [number for number, step in enumerate(found) if step.data]
                if with_octets:
                    place = rng.choice(with_octets)
                    made = split(found[place].data)
                    if rng.random() < 0.1:
                        rng.shuffle(made)
                    found[place] = Step(found[place].kind, b"".join(mutate(rng, made)))
    return found[: 2 * _MOST_STEPS]


def shrunk(make: EngineFactory, steps: Sequence[Step], features: set[str]) -> list[Step]:
    """Return a case with these features that has no step, and no frame, too many."""
    found = [
        Step(step.kind, one) for step in steps for one in (split(step.data) if step.data else [b""])
    ]  # a frame a step, so that each can go
    if not features <= run_case(make, found):
        found = list(steps)
    size = len(found) // 2
    while size:
        place = 0
        while place < len(found):
            shorter = found[:place] + found[place + size :]
            if features <= run_case(make, shorter):
                found = shorter
            else:
                place += size
        size //= 2
    return found


# ---- the cases that are kept


def encoded(steps: Sequence[Step]) -> str:
    """Return a case as a line."""
    plain = json.dumps(
        [[step.kind, base64.b85encode(step.data).decode()] if step.data else [step.kind] for step in steps]
    )
    return base64.b64encode(zlib.compress(plain.encode(), 9)).decode()


def decoded(line: str) -> list[Step]:
    """Return the case that a line is."""
    plain = json.loads(zlib.decompress(base64.b64decode(line)))
    return [Step(kind, base64.b85decode(data[0]) if data else b"") for kind, *data in plain]


class Corpus:
    """The cases that are kept, the shortest for each feature."""

    def __init__(self) -> None:
        self.cases: list[list[Step]] = []
        self._shortest: dict[str, str] = {}

    def new(self, features: Iterable[str]) -> set[str]:
        """Return those that no case has."""
        return {feature for feature in features if feature not in self._shortest}

    def add(self, steps: Sequence[Step], features: Iterable[str]) -> None:
        """Keep a case for those of its features that none has, or only a much longer one."""
        line = encoded(steps)
        if len(line) > _MOST_OCTETS:
            return
        found = False
        for feature in features:
            known = self._shortest.get(feature)
            if known is None or len(line) < len(known) // 2:
                self._shortest[feature] = line
                found = True
        if found:
            self.cases.append(list(steps))

    @property
    def features(self) -> int:
        """How many features there are."""
        return len(self._shortest)

    @classmethod
    def read(cls, makes: Sequence[EngineFactory]) -> Corpus:
        """Play the cases of the file with every engine. An AssertionError has its case as a note."""
        corpus = cls()
        for line in CORPUS.read_text().splitlines():
            steps = decoded(line)
            for make in makes:
                try:
                    corpus.add(steps, run_case(make, steps))
                except BaseException as exc:
                    exc.add_note(f"the case: {line}")
                    raise
        return corpus

    def lines(self) -> list[str]:
        """Return the cases that are the shortest for a feature, each once."""
        return sorted(set(self._shortest.values()))


def fuzz(
    makes: Sequence[EngineFactory],
    rng: Random,
    corpus: Corpus,
    until: Callable[[], bool],
    tell: Callable[[str], object] | None = None,
) -> int:
    """Play cases with every engine until it is time to stop, and return how many; a failure has its case as a note.

    Those with new features are added to `corpus`; with `tell`, they are made shorter first, and told.
    """
    number = 0
    while not until():
        make = makes[number % len(makes)]
        steps: list[Step] = []
        try:
            if not corpus.cases or rng.random() < _FRESH:
                generate(make, rng, steps)
            else:
                steps = changed(rng, rng.choice(corpus.cases), corpus.cases)
            features = run_case(make, steps)
        except BaseException as exc:
            exc.add_note(f"the case: {encoded(steps)}")
            raise
        if new := corpus.new(features):
            if tell is not None:
                steps = shrunk(make, steps, new)
            corpus.add(steps, new)
            if tell is not None:
                tell(f"{number} cases, {len(corpus.lines())} kept, {corpus.features} features")
        number += 1
    return number

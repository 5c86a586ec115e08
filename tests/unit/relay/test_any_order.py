"""What holds for any script of clients, services, windows and sockets, with all of the sidecar between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import structlog
from hyperframe.frame import GoAwayFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ERROR_FIELD, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client, Message, Service
from tests.unit.relay.stage import TRAILERS

NARROW = Limits(stream_window_octets=2_000)
QUEUED_OCTETS = 100_000
TOKEN = b"Bearer minted"
LAST_STREAM = (1 << 31) - 1

WHICH = st.integers(0, 5)
OCTETS = st.sampled_from([1, 100, 700, 3_000, 40_000])
CODE = st.sampled_from([ErrorCode.NO_ERROR, ErrorCode.INTERNAL_ERROR, ErrorCode.CANCEL, 0x77])
SECTION = st.sampled_from([None, [], TRAILERS])
STEPS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "request": (12, (st.booleans(), st.sampled_from([False, False, False, True]))),
    "content": (12, (WHICH, OCTETS)),
    "end": (8, (WHICH, SECTION)),
    "cancel": (2, (WHICH, CODE)),
    "interim": (2, (WHICH,)),
    "respond": (12, (WHICH, st.booleans())),
    "answer": (12, (WHICH, OCTETS)),
    "conclude": (6, (WHICH, SECTION)),
    "reset": (3, (WHICH, st.one_of(CODE, st.just(ErrorCode.REFUSED_STREAM)))),
    "go_away": (2, (WHICH, st.integers(0, 4))),
    "lose": (1, (WHICH,)),
    "pause": (3, (WHICH,)),
    "resume": (3, (WHICH,)),
    "read": (6, (WHICH,)),
    "refuse_connection": (1, ()),
    "mint": (2, (st.booleans(),)),
    "step": (12, ()),
    "settle": (12, ()),
}
"""How often a step is drawn, relative to the others, and what is drawn with it."""

STEP = st.sampled_from([name for name, (often, _) in STEPS.items() for _ in range(often)]).flatmap(
    lambda name: st.tuples(st.just(name), *STEPS[name][1])
)


@dataclass
class Trial:
    """One exchange, as both ends meant it."""

    path: str
    client: Client
    stream_id: StreamId
    content: bytearray = field(default_factory=bytearray)
    ended: bool = False
    trailers: Fields | None = None
    cancelled: int | None = None
    answers: dict[tuple[int, StreamId], Answer] = field(default_factory=dict)
    """By service and stream: one for each attempt that was answered or reset."""

    @property
    def seen(self) -> Message:
        return self.client.streams[self.stream_id]


@dataclass
class Answer:
    """What a service did on one stream."""

    head: bool = False
    interim: int = 0
    content: bytearray = field(default_factory=bytearray)
    ended: bool = False
    trailers: Fields | None = None
    reset: int | None = None


class Script:
    """Plays steps that are legal, leaves out the others, and remembers what was meant."""

    def __init__(self, make: EngineFactory) -> None:
        self.may_mint = asyncio.Event()
        self.may_mint.set()
        self.world = World(
            route("svc", signed=True),
            make=make,
            limits=NARROW,
            client_limits=NARROW,
            service_limits=NARROW,
            queued_octets=QUEUED_OCTETS,
            tokens=lambda clock: TokenSource(self._mint, clock=clock),
        )
        self.clients = [self.world.client(), self.world.client()]
        for client in self.clients:
            client.acknowledging = False
        self.trials: list[Trial] = []
        self.octets = count()
        self.lost: set[int] = set()
        self.away: dict[int, StreamId] = {}
        """Services that said GOAWAY, and the last stream they process."""

    async def _mint(self, key: TokenKey) -> Token:
        await self.may_mint.wait()
        return Token(key=key, authorization=TOKEN, expires_at=self.world.wall + 3600, principal=None)

    def play(self, steps: list[tuple[Any, ...]]) -> None:
        for name, *drawn in steps:
            step: Callable[..., None] = getattr(self, f"on_{name}")
            step(*drawn)
            for service in self.world.services:
                if id(service) not in self.lost and service.acknowledging and not service.requests:
                    service.acknowledging = False

    def some(self, length: int) -> bytes:
        """Return content that is nowhere twice, so that what is lost, doubled or out of order is seen."""
        return b"".join(b"%07d." % next(self.octets) for _ in range(length // 8 + 1))[:length]

    # ---- clients

    def on_request(self, end: bool, discovery: bool) -> None:
        client = self.clients[len(self.trials) % 2]
        if id(client) in self.lost or not client.engine.free_streams:
            return
        path = f"/{len(self.trials)}" + ("/discover" if discovery else "")
        fields = [(b"x-serverless-authorization", b"Bearer spoofed"), (b"x_serverless-authorization", b"spoofed")]
        stream_id = client.request(f"/svc{path}", method="GET" if discovery else "POST", fields=fields, end=end)
        self.trials.append(Trial(path, client, stream_id, ended=end))

    def _sending(self, which: int) -> Trial | None:
        trial = self.trials[which % len(self.trials)] if self.trials else None
        if trial is None or trial.ended or trial.cancelled is not None or trial.seen.reset is not None:
            return None
        return trial

    def on_content(self, which: int, octets: int) -> None:
        trial = self._sending(which)
        if trial is not None:
            data = self.some(octets)
            trial.content += data
            trial.client.engine.send_data(trial.stream_id, data, end_stream=False)

    def on_end(self, which: int, trailers: Fields | None) -> None:
        trial = self._sending(which)
        if trial is not None:
            trial.ended = True
            if trailers is None:
                trial.client.engine.send_data(trial.stream_id, b"", end_stream=True)
            else:
                trial.trailers = trailers or None
                spoofed: Fields = [(b"x-serverless-authorization", b"Bearer spoofed", False)] if trailers else []
                trial.client.engine.send_trailers(trial.stream_id, trailers + spoofed)

    def on_cancel(self, which: int, code: int) -> None:
        trial = self.trials[which % len(self.trials)] if self.trials else None
        if trial is not None and trial.cancelled is None and trial.seen.reset is None:
            trial.cancelled = code
            trial.client.engine.reset(trial.stream_id, code)

    # ---- services

    def _answering(self, which: int) -> tuple[Service, StreamId, Answer] | None:
        trial = self.trials[which % len(self.trials)] if self.trials else None
        arrivals = self.world.arrivals(trial.path) if trial is not None else []
        if trial is None or not arrivals:
            return None
        service, stream_id = arrivals[-1]
        if stream_id > self.away.get(id(service), LAST_STREAM):
            return None
        answer = trial.answers.setdefault((id(service), stream_id), Answer())
        if answer.ended or answer.reset is not None or service.streams[stream_id].reset is not None:
            return None
        return service, stream_id, answer

    def on_interim(self, which: int) -> None:
        found = self._answering(which)
        if found is not None and not found[2].head:
            found[2].interim += 1
            found[0].respond(found[1], 103)

    def on_respond(self, which: int, end: bool) -> None:
        found = self._answering(which)
        if found is not None and not found[2].head:
            found[2].head, found[2].ended = True, end
            found[0].respond(found[1], 200, end=end)

    def on_answer(self, which: int, octets: int) -> None:
        found = self._answering(which)
        if found is not None and found[2].head:
            data = self.some(octets)
            found[2].content += data
            found[0].engine.send_data(found[1], data, end_stream=False)

    def on_conclude(self, which: int, trailers: Fields | None) -> None:
        found = self._answering(which)
        if found is not None and found[2].head:
            found[2].ended = True
            if trailers is None:
                found[0].engine.send_data(found[1], b"", end_stream=True)
            else:
                found[2].trailers = trailers or None
                found[0].engine.send_trailers(found[1], trailers)

    def on_reset(self, which: int, code: int) -> None:
        found = self._answering(which)
        if found is not None and not (found[2].head and code == ErrorCode.REFUSED_STREAM):
            found[2].reset = code
            found[0].engine.reset(found[1], code, after_data=True)

    def on_go_away(self, which: int, processed: int) -> None:
        """Take back streams that were not answered, or none."""
        if not self.world.services:
            return
        service = self.world.services[which % len(self.world.services)]
        begun = [0]
        for trial in self.trials:
            begun += [
                stream_id
                for (known, stream_id), answer in trial.answers.items()
                if known == id(service) and (answer.head or answer.interim or answer.reset is not None)
            ]
        last = max(begun, default=0) + 2 * processed if processed < 4 else LAST_STREAM
        if last <= self.away.get(id(service), LAST_STREAM):
            self.away[id(service)] = last
            service.raw(GoAwayFrame(0, last_stream_id=last))

    # ---- connections

    def on_lose(self, which: int) -> None:
        wire = self.world.wires[which % len(self.world.wires)]
        self.lost.add(id(wire.end))
        wire.lose(ConnectionResetError("by the script"))

    def on_pause(self, which: int) -> None:
        self.world.wires[which % len(self.world.wires)].transport.stall()

    def on_resume(self, which: int) -> None:
        self.world.wires[which % len(self.world.wires)].transport.resume()

    def on_read(self, which: int) -> None:
        end = self.world.wires[which % len(self.world.wires)].end
        for stream_id in list(end.unacknowledged):
            end.acknowledge(stream_id)

    def on_refuse_connection(self) -> None:
        self.world.refusals.append(UpstreamConnectFailed("the script refuses it"))

    def on_mint(self, now: bool) -> None:
        (self.may_mint.set if now else self.may_mint.clear)()

    def on_step(self) -> None:
        self.world.step()

    def on_settle(self) -> None:
        self.world.settle()

    # ---- the end of it

    def open_everything(self) -> None:
        """Give all windows, read all sockets, mint all tokens, wait out the pause after a refused connection."""
        self.may_mint.set()
        for _ in range(2):
            self.world.loop.advance(0.25)
            for wire in self.world.wires:
                wire.transport.resume()
                wire.end.acknowledge_all()
            self.world.settle()

    def finish(self) -> None:
        """End what has not ended."""
        for which, trial in enumerate(self.trials):
            if trial.seen.reset is None:
                self.on_end(which, None)
        self.open_everything()
        for _ in range(5):  # a request may be sent again, and once more
            for which in range(len(self.trials)):
                self.on_respond(which, True)
                self.on_conclude(which, None)
            self.open_everything()


def check_credit(script: Script) -> None:
    """With every window open, all that was received has been given back, on every stream that can still bring more."""
    for wire in script.world.wires:
        if wire.protocol.closed:
            continue
        for stream in wire.protocol.engine.live_streams():
            assert stream.receiver is None or stream.owed_octets == 0, (wire.protocol, stream.id)


def check_requests(script: Script, trial: Trial) -> None:
    """Each attempt has a beginning of what was sent; the last one has all of it unless it was aborted."""
    arrivals = script.world.arrivals(trial.path)
    last = {id(service): script.away.get(id(service), LAST_STREAM) for service, _ in arrivals}
    # A connection that ends after it has taken other requests does not count.
    assert sum(not 0 < last[id(service)] < stream_id for service, stream_id in arrivals) <= 3
    for service, stream_id in arrivals:
        came = service.streams[stream_id]
        assert [value for name, value, _ in came.head or [] if b"serverless" in name] == [TOKEN]
        assert bytes(trial.content).startswith(came.content)
        if came.ended:
            assert trial.ended
            assert came.content == trial.content
            assert came.trailers == trial.trailers
        attempted = trial.answers.get((id(service), stream_id), Answer())
        if attempted.interim or attempted.head:
            assert (service, stream_id) == arrivals[-1], "sent again although an answer had begun"
        if came.reset is not None:
            allowed = {ErrorCode.CANCEL} if came.reset != trial.cancelled else {trial.cancelled}
            assert came.reset in allowed
    if not arrivals or trial.cancelled is not None or id(trial.client) in script.lost:
        return
    service, stream_id = arrivals[-1]
    answer = trial.answers.get((id(service), stream_id), Answer())
    # On a stream above a GOAWAY's last nothing more is sent, not even a reset; what cannot be sent again fails.
    if id(service) in script.lost or stream_id > last[id(service)]:
        return
    if answer.reset is None and service.streams[stream_id].reset is None:
        assert service.streams[stream_id].ended, "the request did not arrive whole"


def check_response(script: Script, trial: Trial) -> None:
    """The response is the one given, or a local reply, or was aborted for a reason and then has no clean end."""
    seen = trial.seen
    gone = trial.cancelled is not None or id(trial.client) in script.lost
    assert gone or seen.ended or seen.reset is not None, "the client waits for ever"
    arrivals = script.world.arrivals(trial.path)
    if seen.value(ERROR_FIELD) is not None:
        assert not any(answer.head for answer in trial.answers.values()) or id(arrivals[-1][0]) in script.lost
        return
    if not arrivals:
        assert seen.head is None
        return
    service, stream_id = arrivals[-1]
    answer = trial.answers.get((id(service), stream_id), Answer())
    assert bytes(answer.content).startswith(seen.content)
    assert len(seen.interim) <= answer.interim
    if seen.ended:
        assert answer.ended
        assert seen.content == answer.content
        assert seen.trailers == answer.trailers
    if gone:
        return
    if answer.ended and id(service) not in script.lost:
        assert seen.ended
        assert seen.content == answer.content
    if seen.reset is not None:
        expected = ErrorCode.INTERNAL_ERROR if answer.reset == ErrorCode.NO_ERROR else answer.reset
        assert seen.reset in {expected} | ({ErrorCode.INTERNAL_ERROR} if id(service) in script.lost else set())
        if seen.reset == expected and id(service) not in script.lost:
            assert seen.content == answer.content


@each_bare_engine
@given(steps=st.lists(STEP, min_size=20, max_size=100))
@settings(max_examples=100)
def test_no_octet_is_lost_or_doubled_in_any_order_of_events(make: EngineFactory, steps: list[tuple[Any, ...]]) -> None:
    with structlog.testing.capture_logs():
        script = Script(make)
        try:
            script.play(steps)
            script.open_everything()
            script.world.assert_in_order()
            check_credit(script)
            script.finish()
            for trial in script.trials:
                check_requests(script, trial)
                check_response(script, trial)
            script.world.assert_at_rest()
        finally:
            script.world.close()

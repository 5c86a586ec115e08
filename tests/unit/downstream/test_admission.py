"""Which connection gives way to a new one: the order, and what is counted between two looks at all of them."""

from __future__ import annotations

import asyncio
import math
import socket

import pytest
from structlog.testing import capture_logs

from proxy.downstream import admission
from proxy.downstream.admission import AcceptedConnection, Admission
from proxy.observe.observer import DownstreamObserver
from tests.support.loops import skip, with_manual_clock

NOW = 100.0
HERE, THERE, ELSEWHERE = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Counts(DownstreamObserver):
    """Keeps why connections were closed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def connection_refused(self, reason: str) -> None:
        self.reasons.append(reason)


class Open(AcceptedConnection):
    """A connection that has had a request: live, or idle since a time."""

    def __init__(self, address: str, accepted_at: float, idle_since: float = math.inf) -> None:
        super().__init__(asyncio.Transport(), accepted_at)
        self.address = address
        self.ended = ""
        self.quiet_since = idle_since
        self.has_asked = True

    @property
    def used(self) -> bool:
        return self.has_asked

    @property
    def idle_since(self) -> float:
        return self.quiet_since

    def give_way(self) -> None:
        self.ended = "gave way"

    def cut_off(self) -> None:
        self.ended = "cut off"

    def abort(self) -> None:
        self.ended = "aborted"


def full(*open_ones: Open) -> tuple[Admission, Counts]:
    """Return an admission whose limit these connections have reached."""
    counts = Counts()
    made = Admission(counts, len(open_ones))
    for one in open_ones:
        made.add(one)
    return made, counts


def comes(made: Admission, address: str, now: float = NOW) -> bool:
    """Open one more connection, and close it again if it may not stay."""
    new = Open(address, now)
    made.add(new)
    if not made.admits(new):
        made.discard(new)
        return False
    for ended in [one for one in made.accepted if isinstance(one, Open) and one.ended]:
        made.discard(ended)
    return True


@with_manual_clock
async def test_of_the_idle_those_of_the_greatest_address_give_way_and_of_them_the_longest_idle() -> None:
    alone = Open(HERE, 0.0, idle_since=1.0)
    later, longest = Open(THERE, 0.0, idle_since=3.0), Open(THERE, 0.0, idle_since=2.0)
    made, counts = full(alone, later, longest, Open(THERE, 0.0))
    for expected in (longest, later, alone):
        assert comes(made, ELSEWHERE)
        assert expected.ended == "gave way"
    assert counts.reasons == ["idle"] * 3


@with_manual_clock
async def test_of_those_without_a_request_each_gives_way_to_one_that_comes() -> None:
    unused = [Open(HERE, float(number)) for number in range(3)]
    for one in unused:
        one.has_asked = False
    made, counts = full(*unused, Open(HERE, 0.0, idle_since=0.0))
    for ended in range(1, 3):  # before those that end have closed
        new = Open(THERE, NOW)
        made.add(new)
        assert made.admits(new)
        assert [one.ended for one in unused] == ["aborted"] * ended + [""] * (3 - ended)
    assert counts.reasons == ["unused"] * 2


@with_manual_clock
async def test_what_has_closed_or_has_a_request_since_the_last_look_does_not_give_way() -> None:
    gone, busy, idle = (Open(HERE, 0.0, idle_since=since) for since in (1.0, 2.0, 3.0))
    first = Open(HERE, 0.0, idle_since=0.0)
    made, _ = full(first, gone, busy, idle)
    assert comes(made, HERE)
    assert first.ended
    made.discard(gone)
    busy.quiet_since = NOW
    made.most_connections -= 1
    assert comes(made, HERE)
    assert (gone.ended, busy.ended, idle.ended) == ("", "", "gave way")


@with_manual_clock
async def test_a_connection_is_idle_after_a_second_without_a_request() -> None:
    idle = Open(HERE, 0.0, idle_since=NOW - 0.9)
    made, counts = full(idle)
    assert not comes(made, HERE)
    assert comes(made, HERE, NOW + 0.2)
    assert counts.reasons == ["max-connections", "idle"]


@pytest.mark.parametrize("look_seconds", [0.0, 10.0], ids=["with a look for each", "after one look"])
@with_manual_clock
async def test_connections_that_come_at_once_share_with_the_greatest_address(
    monkeypatch: pytest.MonkeyPatch, look_seconds: float
) -> None:
    """Each one counts at once, also where all connections are looked at less often."""
    monkeypatch.setattr(admission, "_LOOK_SECONDS", look_seconds)
    greedy = [Open(HERE, float(number)) for number in range(8)]
    made, counts = full(*greedy)
    admitted = [comes(made, THERE, NOW + number / 100) for number in range(6)]
    assert admitted == [True] * 3 + [False] * 3
    assert [one.ended for one in greedy] == [""] * 5 + ["cut off"] * 3, "the newest of them"
    assert counts.reasons == ["most-connections"] * 3 + ["max-connections"] * 3


@pytest.mark.parametrize("look_seconds", [0.0, 10.0], ids=["with a look for each", "after one look"])
@pytest.mark.parametrize(("live", "cut_off"), [(8, 1), (7, 0)])
@with_manual_clock
async def test_connections_for_which_idle_ones_gave_way_count_too(
    monkeypatch: pytest.MonkeyPatch, look_seconds: float, live: int, cut_off: int
) -> None:
    monkeypatch.setattr(admission, "_LOOK_SECONDS", look_seconds)
    idle = [Open(HERE, 0.0, idle_since=float(number)) for number in range(3)]
    made, counts = full(*idle, *(Open(HERE, 0.0) for _ in range(live)))
    admitted = [comes(made, THERE, NOW + number / 100) for number in range(6)]
    assert sum(admitted) == 3 + cut_off
    assert counts.reasons == ["idle"] * 3 + ["most-connections"] * cut_off + ["max-connections"] * (3 - cut_off)


@with_manual_clock
async def test_a_handshake_takes_nothing_from_connections_with_live_requests() -> None:
    greedy = [Open(HERE, 0.0) for _ in range(4)]
    made, _ = full(*greedy)
    assert not made._make_room(NOW, None)
    idle = Open(HERE, 0.0, idle_since=0.0)
    made.add(idle)
    assert made._make_room(NOW + 1.0, None)
    assert [one.ended for one in (*greedy, idle)] == [""] * 4 + ["gave way"]


@with_manual_clock
async def test_refused_connections_are_logged_once_in_ten_seconds_with_their_number() -> None:
    made, _ = full(Open(HERE, 0.0))
    with capture_logs() as lines:
        for seconds in (0.0, 1.0, 8.0, 1.0, 10.0):
            await skip(seconds)
            assert not comes(made, HERE)
    said = [line for line in lines if line["event"].startswith("closing new connections")]
    assert [(line["closed"], line["connections"]) for line in said] == [(1, 2), (3, 2), (1, 2)]


@with_manual_clock
async def test_a_descriptor_that_is_reserved_is_not_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "is_reserved", lambda descriptor, to_service: True)
    counts = Counts()
    made = Admission(counts, 10)
    with capture_logs() as lines, socket.socket() as connection:
        new = Open(HERE, NOW)
        new.transport = asyncio.Transport({"socket": connection})
        made.add(new)
        assert not made.admits(new)
        assert not made.admits_handshake(connection, 0, lambda before: False)
    assert counts.reasons == ["open-files"] * 2
    assert "limit of open files nearly reached" in lines[0]["event"]


@with_manual_clock
async def test_a_handshake_has_room_under_the_limit_or_from_the_oldest_or_from_an_idle_connection() -> None:
    await skip(NOW)
    idle = Open(HERE, 0.0, idle_since=0.0)
    made, counts = full(idle, Open(HERE, 0.0))
    made.most_connections = 4
    asked: list[float] = []

    def none(before: float) -> bool:
        asked.append(before)
        return False

    with socket.socket() as connection:
        assert made.admits_handshake(connection, 1, none)
        assert not asked
        assert made.admits_handshake(connection, 2, lambda before: True)
        assert not idle.ended
        assert made.admits_handshake(connection, 2, none)
        assert idle.ended
        assert not made.admits_handshake(connection, 2, none)
    assert asked == [NOW - 1.0] * 2, "one that began within a second stays"
    assert counts.reasons == ["unused", "idle", "max-connections"]


@with_manual_clock
async def test_where_all_places_are_taken_by_handshakes_none_begins() -> None:
    made, _ = full()
    made.most_connections = 2
    with socket.socket() as connection:
        assert not made.admits_handshake(connection, 2, lambda before: False)

"""What is told of the relay holds, too, if each read takes so long that a few octets are served in a turn of the loop.

The scenarios are those of other modules, played again.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

import pytest
import structlog

from proxy.http2.choice import EngineFactory
from tests.fuzz.relay_cases import CORPUS, decoded, run_case
from tests.support.data_path import Wire, World
from tests.support.peers.engines import FACTORIES, each_bare_engine
from tests.support.slices import SLICE_OCTETS
from tests.unit.relay import (
    test_cancels,
    test_defects,
    test_early_ends,
    test_error_responses,
    test_forwarding,
    test_lifetime,
    test_retries,
)

OTHERWISE: Final = {
    # libnghttp2 gives a window back when half of it was used: the last octets are less than that.
    "test_the_request_window_returns_only_when_the_upstream_takes_the_octets",
    "test_the_response_window_returns_only_when_the_client_takes_the_octets",
    # Two requests of one read have one failure in common.
    "test_an_exchange_with_a_local_reply_is_freed_at_once",
}
"""Tests of what one read brings."""


def play_again(module: ModuleType) -> None:
    """Make the tests of another module tests of this one."""
    for name, test in vars(module).items():
        if name.startswith("test_") and name not in OTHERWISE:
            globals()[f"{name}_in_slices"] = test


for module in (
    test_cancels,
    test_defects,
    test_early_ends,
    test_error_responses,
    test_forwarding,
    test_lifetime,
    test_retries,
):
    play_again(module)


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wire, "in_slices", True)


@each_bare_engine
def test_each_turn_serves_a_slice_of_a_read_and_nothing_else_is_read(make: EngineFactory) -> None:
    octets = 10 * SLICE_OCTETS
    with World(make=make) as world:
        client = world.client()
        stream = client.request("/svc/x", fields=[(b"x-first", b"1")])
        world.settle()
        service, far = world.latest("/x")
        client.engine.send_data(stream, bytes(octets), end_stream=True)
        wire = world.wire(client)
        with world.loop.in_turn():
            assert wire.move()
        turns = 0
        while wire.transport.reading_paused:
            world.loop.turn()
            turns += 1
        assert turns >= octets // SLICE_OCTETS
        world.settle()
        assert service.streams[far].content == bytes(octets)
        service.respond(far, end=True)
        world.settle()
        world.assert_at_rest()


@pytest.mark.parametrize("make", FACTORIES.values(), ids=list(FACTORIES))
def test_octets_that_were_found_at_random_harm_neither_the_relay_nor_a_neighbour(make: EngineFactory) -> None:
    with structlog.testing.capture_logs():
        for line in CORPUS.read_text().splitlines():
            assert "neighbour 200" in run_case(make, decoded(line))

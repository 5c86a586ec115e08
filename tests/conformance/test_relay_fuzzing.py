"""Random octets from both sides of the relay; `make fuzz` plays as many cases as one likes."""

from __future__ import annotations

import time
from random import Random

import pytest
import structlog

from tests.fuzz.relay import End, Relay, Step
from tests.fuzz.relay_cases import Corpus, decoded, encoded, fuzz, run_case
from tests.fuzz.traffic import HEADERS, frame, split
from tests.support.peers.engines import FACTORIES
from tests.support.peers.raw import PREFACE

MAKES = list(FACTORIES.values())
SECONDS = 30.0


def test_random_octets_from_both_sides_harm_neither_the_relay_nor_a_neighbour() -> None:
    end = time.monotonic() + SECONDS
    with structlog.testing.capture_logs():
        corpus = Corpus.read(MAKES)
        assert corpus.features > 80, "the kept cases reach less than they did"
        assert fuzz(MAKES, Random(), corpus, lambda: time.monotonic() >= end) > 10


def test_a_case_is_the_same_after_it_was_written_and_read() -> None:
    steps = [Step("client", PREFACE + bytes(range(256))), Step("settle"), Step("service", b"")]
    assert decoded(encoded(steps)) == steps
    data = b"".join((PREFACE, frame(4, 0, 0), frame(0, 1, 1, b"x"), b"half"))
    assert split(data) == [PREFACE + frame(4, 0, 0), frame(0, 1, 1, b"x"), b"half"]


@pytest.mark.parametrize(
    "token",
    [
        b"\x00\x1ax-serverless-authorization\x0eBearer spoofed",
        b"\x00\x1ax_serverless-authorization\x0dBearer minted",
        b"",
    ],
)
def test_a_service_notices_a_request_without_the_token_of_its_route(token: bytes) -> None:
    with pytest.raises(AssertionError, match="has the token of its route"):
        End(is_service=True).receive(PREFACE + frame(HEADERS, 5, 1, b"\x83" + token))


def test_an_internal_error_of_the_relay_ends_a_case() -> None:
    relay = Relay(MAKES[0])
    relay.loop.call_soon(lambda: 1 / 0)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        relay.run_case([Step("turn")])


def test_a_neighbour_that_is_not_served_ends_a_case() -> None:
    relay = Relay(MAKES[0])
    relay.dispatcher.draining = True
    with structlog.testing.capture_logs(), pytest.raises(AssertionError):
        relay.run_case([])
    assert run_case(MAKES[0], []) == {"neighbour 200"}

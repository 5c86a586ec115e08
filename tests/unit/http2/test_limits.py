"""Limits that HTTP/2 can express."""

from __future__ import annotations

import pytest

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import UNLIMITED, Limits
from tests.support.peers.engines import Handler, each_bare_engine


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_concurrent_streams", (-1, 1 << 32)),
        ("stream_window_octets", (-1, 1 << 31)),
        ("connection_window_octets", (-1, 1 << 31)),
        ("max_field_section_octets", (-1, 1 << 32)),
        ("max_frame_octets", (16_383, 1 << 24)),
    ],
)
def test_limits_outside_the_range_of_http2_are_refused(name: str, values: tuple[int, int]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"limits.*{name}={value}"):
            Limits(**{name: value})


LEAST = Limits(
    max_concurrent_streams=0,
    stream_window_octets=0,
    connection_window_octets=0,
    max_field_section_octets=0,
    max_frame_octets=16_384,
)
GREATEST = Limits(
    max_concurrent_streams=UNLIMITED,
    stream_window_octets=(1 << 31) - 1,
    connection_window_octets=(1 << 31) - 1,
    max_field_section_octets=UNLIMITED,
    max_frame_octets=(1 << 24) - 1,
)


@each_bare_engine
@pytest.mark.parametrize("limits", [LEAST, GREATEST], ids=["least", "greatest"])
@pytest.mark.parametrize("client", [True, False])
def test_every_engine_takes_what_http2_can_express(make: EngineFactory, client: bool, limits: Limits) -> None:
    engine = make(client=client, limits=limits, handler=Handler())
    assert engine.take()

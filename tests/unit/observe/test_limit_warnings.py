"""Refusals for which a setting is the limit are warnings that name it; others are lines at the level `debug`."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.observe.warnings import Warnings
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import begun


def test_a_request_larger_than_max_field_section_is_a_warning_once_a_second() -> None:
    now = 0.0
    warnings = Warnings(monotonic=lambda: now)
    with capture_logs() as log:
        for stream in (1, 3):
            warnings.request_refused("section-too-large", {"protocol": "HTTP/2", "stream": stream})
        now = 1.5
        warnings.request_refused("section-too-large", {"protocol": "HTTP/2", "stream": 5})
        warnings.request_refused("field", {"protocol": "HTTP/2", "stream": 7})
    first, second, other = log
    assert (first["event"], first["log_level"], first["stream"]) == ("request refused", "warning", 1)
    assert "larger than max_field_section" in first["remedy"]
    assert (second["stream"], second["repeats_dropped"]) == (5, 1)
    assert (other["log_level"], "remedy" in other) == ("debug", False)


@each_bare_engine
@pytest.mark.parametrize(
    ("fields", "interim", "setting"), [([(b"x", b"v" * 5_000)], 0, "max_field_section"), ([], 3, "max_interim_heads")]
)
def test_a_response_beyond_a_limit_is_a_warning_that_names_the_setting(
    make: EngineFactory, fields: list[tuple[bytes, bytes]], interim: int, setting: str
) -> None:
    limits = Limits(max_field_section_octets=4_000, max_interim_heads=2)
    with World(make=make, limits=limits) as world, capture_logs() as log:
        _, _, service, far = begun(world, end=True)
        for _ in range(interim):
            service.respond(far, 103)
        service.respond(far, fields=fields, end=True)
        world.settle()
    (line,) = [line for line in log if line["event"] == "response refused"]
    assert (line["log_level"], line["origin"]) == ("warning", "https://svc.example")
    assert setting in line["remedy"]

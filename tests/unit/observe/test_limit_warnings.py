"""Refusals for which a setting is the limit are warnings that name it; others are lines at the level `debug`."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from proxy.errors import RouteNotFound
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.observe.access_log import AccessLog
from proxy.observe.warnings import Warnings
from tests.support.data_path import World
from tests.support.observed import Observed
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


def test_a_request_without_a_route_has_no_name_of_one_in_any_line() -> None:
    with capture_logs() as log:
        for observer in (Warnings().route(None), AccessLog().route(None)):
            assert observer is not None
            observer.local_reply(Observed(status=404), RouteNotFound("no route"))
            observer.ended(Observed(status=404), 404, 0.1)
    assert [(line["event"], line["route"]) for line in log] == [("request failed", None), ("exchange", None)]


@each_bare_engine
def test_the_content_of_a_local_reply_is_counted(make: EngineFactory) -> None:
    with World(make=make, access_log=True) as world, capture_logs() as log:
        client = world.client()
        stream = client.request("/nowhere/x", end=True)
        world.settle()
        content = client.streams[stream].content
    (line,) = [line for line in log if line["event"] == "exchange"]
    assert line["response_octets"] == len(content) > 0


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

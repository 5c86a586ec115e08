"""The surroundings of `make cluster`, and when its load is not spread."""

from __future__ import annotations

import tomllib

from tests.soak.cluster import Phase, unfair
from tests.soak.replicas import ROUTE, balancer_settings, sidecar_settings


def phase(**requests: int) -> Phase:
    return Phase(name="all run", calls=(), longest_pause_seconds=0.0, requests=requests, attempts={})


def test_the_sidecars_have_the_settings_of_the_manifest_with_key_service_and_age_replaced() -> None:
    settings = tomllib.loads(
        sidecar_settings(identity_key="publickeyv1_a", url="https://127.0.0.1:1", connection_age_seconds=8.0)
    )
    assert settings["restate_identity_keys"] == ["publickeyv1_a"]
    assert settings["max_connection_age"] == 8
    assert settings["routes"] == {ROUTE: {"url": "https://127.0.0.1:1"}}
    assert settings["drain_timeout"] == 90


def test_haproxy_sends_connections_to_sidecars_that_are_ready() -> None:
    text = balancer_settings(8000, {9081: 9091, 9082: 9092})
    assert "bind 127.0.0.1:8000" in text
    assert "127.0.0.1:9081 check port 9091" in text
    assert "127.0.0.1:9082 check port 9092" in text
    assert "uri /readyz" in text


def test_each_sidecar_needs_a_tenth_of_the_requests() -> None:
    assert unfair(phase(one=10, other=90)) == []
    assert unfair(phase(one=9, other=91)) == ["all run: one had 9 of 100 requests"]
    assert unfair(phase(one=0, other=0)) == ["all run: one had 0 of 0 requests", "all run: other had 0 of 0 requests"]

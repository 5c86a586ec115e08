from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.load.peer_configs import Way, envoy, haproxy, nghttpx

WAY = Way(port=9081, upstream_port=8443, ca_file=Path("/ca.pem"), authorization="Bearer a.b.c")


@pytest.mark.parametrize("config", [envoy, haproxy, nghttpx])
def test_every_peer_verifies_the_upstream_and_adds_the_token(config: object) -> None:
    assert callable(config)
    text = config(WAY)
    for expected in ("9081", "8443", "/ca.pem", "Bearer a.b.c", "x-serverless-authorization"):
        assert expected in text


def test_envoys_circuit_breakers_do_not_limit_the_bench() -> None:
    cluster = json.loads(envoy(WAY))["static_resources"]["clusters"][0]
    assert min(cluster["circuit_breakers"]["thresholds"][0].values()) > 10_000
    tls = cluster["transport_socket"]["typed_config"]["common_tls_context"]
    assert tls["alpn_protocols"] == ["h2"]
    assert tls["validation_context"]["trusted_ca"] == {"filename": "/ca.pem"}


def test_haproxy_and_nghttpx_have_one_thread() -> None:
    assert "nbthread 1" in haproxy(WAY)
    assert "ssl verify required" in haproxy(WAY)
    assert "workers=1\n" in nghttpx(WAY)
    assert "insecure" not in nghttpx(WAY)

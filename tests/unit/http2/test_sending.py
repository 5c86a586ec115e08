"""What tests/conformance does not ask of every engine: how the commands take a caller's mistakes."""

from __future__ import annotations

import pytest

from proxy.http2.h2_engine import H2Engine
from tests.conformance.raw import REQUEST, RESPONSE, RawPeer, line, of


def server() -> RawPeer:
    return RawPeer(H2Engine, engine_is_client=False)


def client() -> RawPeer:
    return RawPeer(H2Engine, engine_is_client=True)


@pytest.mark.parametrize("bad", ["text", b"a\r\nb", b"a\0b", None])
def test_a_field_that_must_not_be_sent_leaves_the_compression_in_step(bad: bytes) -> None:
    peer = client()
    with pytest.raises(ValueError, match="field"):
        peer.engine.send_request([*REQUEST, line(b"x-new", b"x"), line(b"x-bad", bad)], end_stream=True)
    assert peer.engine.open_streams == 0
    for _ in range(3):
        peer.engine.send_request([*REQUEST, line(b"x-new", b"x")], end_stream=True)
        (head,) = of(peer.take(), "Headers")
        assert head.fields == [*REQUEST, line(b"x-new", b"x")]


def test_trailers_that_must_not_be_sent_are_refused_when_they_are_queued() -> None:
    peer = client()
    peer.asked()
    with pytest.raises(ValueError, match="field"):
        peer.engine.send_trailers(1, [line(b"x", b"a\nb")])
    peer.engine.send_trailers(1, [line(b"x", b"fine")])
    assert peer.take()[0].fields == [line(b"x", b"fine")]


def test_commands_out_of_order_are_a_defect_of_the_caller() -> None:
    peer = server()
    peer.open()
    with pytest.raises(RuntimeError, match="before its head"):
        peer.engine.send_data(1, b"x", end_stream=False)
    with pytest.raises(RuntimeError, match="before its head"):
        peer.engine.send_trailers(1, [])
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    with pytest.raises(RuntimeError, match="was sent before"):
        peer.engine.send_head(1, RESPONSE, end_stream=False)
    with pytest.raises(ValueError, match="eight octets"):
        peer.engine.ping(b"short")


def test_what_is_queued_behind_an_end_is_ignored() -> None:
    peer = client()
    peer.asked()
    peer.engine.send_data(1, b"all", end_stream=True)
    peer.engine.send_data(1, b" and more", end_stream=True)
    peer.engine.send_trailers(1, [line(b"x", b"y")])
    (only,) = peer.take()
    assert (only.body, only.ends) == (b"all", True)
    peer.engine.send_data(1, b"late", end_stream=True)
    assert peer.take() == []

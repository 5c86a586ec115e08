from __future__ import annotations

import gc
import tracemalloc
from importlib import import_module
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import FlowControlError
from h2.settings import Settings
from h2.stream import H2Stream
from h2.windows import WindowManager
from hpack.table import HeaderTable

from proxy.http2 import h2_engine
from proxy.http2.engine import Engine, Limits
from proxy.http2.h2_engine import LIBRARY, PRIVATE_NAMES, H2Engine
from tests.conformance.raw import RESPONSE, RawPeer


def server() -> RawPeer:
    return RawPeer(H2Engine, engine_is_client=False)


def client() -> RawPeer:
    return RawPeer(H2Engine, engine_is_client=True)


def test_it_is_an_engine() -> None:
    engine: Engine = H2Engine(client=True, limits=Limits())
    assert engine.name == "h2"
    assert LIBRARY.startswith("h2 4.")


def test_every_private_name_is_there_in_the_installed_h2() -> None:
    config = H2Configuration()
    instances = {
        "h2.connection.H2Connection": H2Connection(config),
        "h2.stream.H2Stream": H2Stream(1, config, 0, 0),
        "h2.stream.H2StreamStateMachine": H2Stream(1, config, 0, 0).state_machine,
        "h2.settings.Settings": Settings(),
        "h2.windows.WindowManager": WindowManager(1),
        "hpack.table.HeaderTable": HeaderTable(),
    }
    for name in PRIVATE_NAMES:
        place, _, attribute = name.partition(":")
        module, _, kind = place.rpartition(".")
        assert type(instances[place]) is getattr(import_module(module), kind)
        assert hasattr(instances[place], attribute), name


def test_no_private_name_is_used_that_is_not_listed() -> None:
    source = Path(h2_engine.__file__).read_text()
    listed = {name.partition(":")[2] for name in PRIVATE_NAMES}
    known = {name for name in vars(H2Connection(H2Configuration())) | vars(H2Connection) if name.startswith("_")}
    used = {name for name in known if not name.startswith("__") and f".{name}" in source}
    assert used <= listed


def test_a_window_manager_counts_as_we_think_it_does() -> None:
    window = WindowManager(100)
    window.window_opened(100)
    window.window_consumed(150)
    assert window.current_window_size == 50
    assert not window.process_bytes(99)
    assert window.process_bytes(1) == 100
    with pytest.raises(FlowControlError):
        window.window_consumed(151)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(stream_window_octets=1 << 31),
        Limits(connection_window_octets=1 << 31),
        Limits(max_frame_octets=16_383),
        Limits(max_frame_octets=1 << 24),
        Limits(max_concurrent_streams=1 << 32),
    ],
)
def test_limits_that_http2_cannot_express_are_refused(limits: Limits) -> None:
    with pytest.raises(ValueError, match="limits"):
        H2Engine(client=False, limits=limits)


def test_finished_streams_cost_no_memory() -> None:
    peer = server()

    def exchanges(first: int, last: int) -> None:
        for stream_id in range(first, last, 2):
            peer.open(stream_id)
            peer.send(peer.data(stream_id, b"x" * 100, end=True))
            peer.engine.acknowledge(stream_id, 100)
            peer.engine.acknowledge_connection(100)
            peer.engine.send_head(stream_id, RESPONSE, end_stream=False)
            peer.engine.send_data(stream_id, b"y" * 100, end_stream=True)
            peer.engine.take()

    exchanges(1, 2_001)
    gc.collect()
    tracemalloc.start()
    exchanges(2_001, 3_001)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    exchanges(3_001, 9_001)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 3_000 * 8

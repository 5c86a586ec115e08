"""The seam: what of Hypercorn the listener replaces or relies on, held against the installed version."""

from __future__ import annotations

import inspect

import hypercorn.asyncio.run
import hypercorn.run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol


def parameters(thing: object) -> list[str]:
    return list(inspect.signature(thing).parameters)  # type: ignore[arg-type]


def test_hypercorn_builds_and_awaits_a_tcp_server_for_each_connection() -> None:
    assert parameters(TCPServer) == ["app", "loop", "config", "context", "state", "reader", "writer"]
    source = inspect.getsource(hypercorn.asyncio.run.worker_serve)
    assert "await TCPServer(app, loop, config, context, lifespan_state, reader, writer)" in source
    assert parameters(hypercorn.asyncio.run.worker_serve) == ["app", "config", "sockets", "shutdown_trigger"]


def test_a_tcp_server_asks_its_reader_only_what_the_pushback_answers() -> None:
    source = inspect.getsource(TCPServer)
    asked = {part.split("(")[0] for part in source.split("self.reader.")[1:]}
    assert asked == {"at_eof", "read"}
    assert "self.protocol.handle(" in source
    assert {"idle_task", "protocol_send", "_read_data", "_idle_timeout", "_close"} <= {
        *vars(TCPServer),
        *inspect.getsource(TCPServer.__init__).replace("self.", " ").split(),
    }


def test_the_http1_protocol_is_made_as_the_wrapper_makes_it() -> None:
    made = ["app", "config", "context", "task_group", "connection_state", "ssl", "client", "server", "send"]
    assert parameters(H11Protocol) == made
    assert len(parameters(ProtocolWrapper)) == len(made) + 1
    assert inspect.iscoroutinefunction(H11Protocol._check_protocol)
    assert inspect.iscoroutinefunction(H11Protocol._create_stream)
    # Upgrades are decided in these two, and nowhere else.
    upgrading = [name for name, member in vars(H11Protocol).items() if "upgrade" in _source(member).lower()]
    assert sorted(upgrading) == ["_check_protocol", "_create_stream"]


def _source(member: object) -> str:
    return inspect.getsource(member) if inspect.isfunction(member) else ""


def test_workers_are_started_through_the_name_that_is_replaced() -> None:
    source = inspect.getsource(hypercorn.run.run)
    assert "from .asyncio.run import asyncio_worker" in source
    assert "config.create_sockets()" in source
    assert parameters(hypercorn.asyncio.run.asyncio_worker) == ["config", "sockets", "shutdown_event"]
    populate = inspect.getsource(hypercorn.run._populate)
    assert '"config": config, "shutdown_event": shutdown_event, "sockets": sockets' in populate

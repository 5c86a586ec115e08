"""Compares the parts of Hypercorn that the listener replaces or relies on with the installed version."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect

import h11
import hypercorn.asyncio.run
import hypercorn.run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream


def parameters(thing: object) -> list[str]:
    return list(inspect.signature(thing).parameters)  # type: ignore[arg-type]


def test_hypercorn_builds_and_awaits_a_tcp_server_for_each_connection() -> None:
    assert parameters(TCPServer) == ["app", "loop", "config", "context", "state", "reader", "writer"]
    source = inspect.getsource(hypercorn.asyncio.run.worker_serve)
    assert "await TCPServer(app, loop, config, context, lifespan_state, reader, writer)" in source
    assert parameters(hypercorn.asyncio.run.worker_serve) == ["app", "config", "sockets", "shutdown_trigger"]


def test_a_tcp_server_uses_only_methods_that_the_pushback_reader_has() -> None:
    source = inspect.getsource(TCPServer)
    asked = {part.split("(")[0] for part in source.split("self.reader.")[1:]}
    assert asked == {"at_eof", "read"}
    assert "self.protocol.handle(" in source
    assert {"idle_task", "protocol_send", "_read_data", "_idle_timeout", "_close"} <= {
        *vars(TCPServer),
        *inspect.getsource(TCPServer.__init__).replace("self.", " ").split(),
    }


def test_the_http1_protocol_has_the_signature_that_the_wrapper_uses() -> None:
    made = ["app", "config", "context", "task_group", "connection_state", "ssl", "client", "server", "send"]
    assert parameters(H11Protocol) == made
    assert len(parameters(ProtocolWrapper)) == len(made) + 1
    for name in ("_check_protocol", "_create_stream", "_close_stream", "_send_h11_event", "_send_error_response"):
        assert inspect.iscoroutinefunction(getattr(H11Protocol, name)), name
    # Only these two decide upgrades, and only one of them converts methods to upper case.
    for word, where in (("upgrade", ["_check_protocol", "_create_stream"]), ("request.method", ["_create_stream"])):
        found = [name for name, member in vars(H11Protocol).items() if word in _source(member).lower()]
        assert sorted(found) == where


def test_a_stream_is_created_like_hypercorns() -> None:
    assert parameters(HTTPStream) == [
        *("app", "config", "context", "task_group", "ssl", "client", "server", "send", "stream_id")
    ]
    fields = [field.name for field in dataclasses.fields(Request)]
    assert sorted(fields) == ["headers", "http_version", "method", "raw_path", "state", "stream_id"]
    created = inspect.getsource(H11Protocol._create_stream)
    assert "self.keep_alive_requests += 1" in created
    assert "await self.context.mark_request()" in created


def test_an_injected_fault_sets_the_same_state_as_h11s_own() -> None:
    connection = h11.Connection(h11.SERVER)
    connection._process_error(h11.CLIENT)
    assert connection.their_state is h11.ERROR
    assert connection.our_state is h11.IDLE
    assert "self._process_error(self.their_role)" in inspect.getsource(h11.Connection.next_event)


def _source(member: object) -> str:
    return inspect.getsource(member) if inspect.isfunction(member) else ""


def test_hypercorn_creates_its_servers_on_the_loop() -> None:
    assert "asyncio.start_server(_server_callback, backlog=config.backlog, sock=sock)" in inspect.getsource(
        hypercorn.asyncio.run.worker_serve
    )
    assert ".create_server(" in inspect.getsource(asyncio.start_server)

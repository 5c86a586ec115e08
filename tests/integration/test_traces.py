"""Traces: what the real program sends to a receiver of OpenTelemetry's protocol, and what it does without one."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from h2.settings import SettingCodes
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from proxy.emulator import Google, GoogleServer
from tests.support.chain import StartChain
from tests.support.otlp import attributes_of, receiver
from tests.support.packages import python_path_without
from tests.support.peers.sockets import Peer, Server, client
from tests.support.processes import program
from tests.support.sidecar import worker_pids

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())
INVOCATION = (b"x-restate-invocation-id", b"inv_1abcDEF")
CANCEL = 8


def exporting_to(url: str, **more: str | None) -> dict[str, str | None]:
    """The environment that asks for traces, which are sent at once."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "20", **more}


async def call(
    near: Peer, far: Server, *, fields: list[tuple[bytes, bytes]] | None = None, status: int = 200
) -> list[tuple[bytes, bytes]]:
    """Make one request with a query, and return the fields that the upstream got."""
    stream = near.open("/svc/invoke/S/h?secret=1", fields=[*(fields or []), INVOCATION], end=True)
    peer, far_stream, got, _ = await far.request()
    peer.respond(far_stream, status, end=True)
    assert (await near.response(stream)).status == status
    return got


def events_of(span: Span) -> dict[str, dict[str, object]]:
    return {event.name: attributes_of(event.attributes) for event in span.events}


@pytest.mark.asyncio
async def test_an_exchange_is_one_client_span_below_that_of_the_client(chain: StartChain) -> None:
    state = (b"tracestate", b"vendor=1,other=2")
    async with (
        receiver() as received,
        chain(env=exporting_to(received.url)) as (running, far, near),
    ):
        got = await call(near, far, fields=[TRACEPARENT, state])
        (span,) = await received.received(1)
        assert (span.name, span.kind) == ("POST", Span.SPAN_KIND_CLIENT)
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert span.trace_state == "vendor=1,other=2"
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 30e9
        assert span.status.code == Status.STATUS_CODE_UNSET
        assert attributes_of(span.attributes) == {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "server.address": "127.0.0.1",
            "server.port": far.port,
            "url.full": f"https://127.0.0.1:{far.port}/invoke/S/h",
            "network.protocol.name": "http",
            "network.protocol.version": "2",
            "cloudrun_sidecar.route": "svc",
            "restate.invocation.id": "inv_1abcDEF",
        }
        # The first request waited for its connection.
        assert set(events_of(span)) == {"connect"}
        # What the service gets is what the client sent.
        assert [field for field in got if field[0].startswith(b"trace")] == [TRACEPARENT, state]
        await call(near, far)
        _, second = await received.received(2)
        assert (second.parent_span_id, len(second.trace_id)) == (b"", 16)
        assert not second.events
        assert received.resources[0]["service.name"] == "cloudrun-sidecar"
        assert received.resources[0]["process.pid"] == running.program.pid


@pytest.mark.asyncio
async def test_the_wait_for_a_mint_is_an_event_of_the_exchanges_that_waited(chain: StartChain) -> None:
    google = Google()
    async with receiver() as received, GoogleServer(google, chain.certificates) as at:
        env = exporting_to(received.url, GCE_METADATA_HOST=at.metadata_address, OTEL_SERVICE_NAME="billing")
        async with chain(env=env, signed=["svc"]) as (_, far, near):
            await call(near, far)
            await call(near, far)
            first, second = await received.received(2)
            mint = events_of(first)["mint"]
            assert mint.keys() == {"audience", "seconds"}
            assert mint["audience"] == f"https://127.0.0.1:{far.port}"
            assert [event.name for event in first.events] == ["mint", "connect"]
            assert first.start_time_unix_nano <= first.events[0].time_unix_nano <= first.events[1].time_unix_nano
            assert not second.events
            assert received.resources[0]["service.name"] == "billing"


@pytest.mark.asyncio
async def test_a_failure_is_the_error_type_of_the_span(chain: StartChain) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        unsigned = f'[routes.down]\nurl = "https://127.0.0.1:{closed.getsockname()[1]}"\ngcp_id_token = false\n'
        async with receiver() as received, chain(env=exporting_to(received.url), settings=unsigned) as (_, far, near):
            await near.response(near.open("/down/invoke/S/h", end=True))
            (down,) = await received.received(1)
            assert attributes_of(down.attributes)["error.type"] == "upstream-connect-failed"
            assert attributes_of(down.attributes)["http.response.status_code"] == 503
            assert events_of(down)["connect"]["error.type"] == "upstream-connect-failed"
            assert down.status.code == Status.STATUS_CODE_ERROR
            await near.response(near.open("/nowhere", end=True))
            assert attributes_of((await received.received(2))[1].attributes) == {
                "http.request.method": "POST",
                "url.path": "/nowhere",
                "http.response.status_code": 404,
                "error.type": "route-not-found",
            }
            await call(near, far, status=403)
            assert attributes_of((await received.received(3))[2].attributes)["error.type"] == "403"
            stream = near.open("/svc/invoke/S/h", method="BREW")
            await far.request()
            near.reset(stream, CANCEL)
            cancelled = (await received.received(4))[3]
            attributes = attributes_of(cancelled.attributes)
            assert (attributes["error.type"], attributes["cloudrun_sidecar.reset_by"]) == ("CANCEL", "downstream")
            assert (cancelled.name, attributes["http.request.method"]) == ("HTTP", "_OTHER")
            assert "http.response.status_code" not in attributes


@pytest.mark.asyncio
async def test_what_the_client_does_not_sample_is_not_exported(chain: StartChain) -> None:
    async with receiver() as received, chain(env=exporting_to(received.url)) as (running, far, near):
        await call(near, far, fields=[(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())])
        await call(near, far, fields=[TRACEPARENT])
        await running.end()
        assert [span.parent_span_id.hex() for span in received.spans] == [PARENT]


@pytest.mark.asyncio
async def test_queued_spans_are_sent_at_the_end(chain: StartChain) -> None:
    async with (
        receiver() as received,
        chain(env=exporting_to(received.url, OTEL_BSP_SCHEDULE_DELAY="3600000")) as (running, far, near),
    ):
        await call(near, far)
        assert not received.spans
        await running.end()
        assert len(received.spans) == 1


@pytest.mark.asyncio
async def test_both_workers_send_their_spans(chain: StartChain) -> None:
    env = exporting_to("")
    async with receiver() as received:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = received.url
        async with chain("--workers", "2", "--admin", "off", env=env) as (running, _, near):
            pids = await worker_pids(running.program)
            async with client(*running.address) as other:
                for peer in (near, other):
                    await peer.response(peer.open("/nowhere", end=True))
                await received.received(2)
            assert {resource["process.pid"] for resource in received.resources} == set(pids)


@pytest.mark.asyncio
async def test_a_missing_receiver_stops_no_request_and_is_logged_once(chain: StartChain) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        env = exporting_to(f"http://127.0.0.1:{closed.getsockname()[1]}", OTEL_EXPORTER_OTLP_TIMEOUT="2")
        async with chain(env=env) as (running, far, near):
            await call(near, far)
            (line,) = await running.logged("spans are not exported")
            assert line["severity"] == "WARNING"
            assert line["room"] == "tracing"
            assert "Connection refused" in str(line["cause"])
            for _ in range(20):
                await call(near, far)
            log = await running.end()
        assert [line["message"] for line in log].count("spans are not exported") == 1
        assert [json.loads(line) for line in running.program.lines] == log


@pytest.mark.asyncio
async def test_a_key_in_the_url_of_the_receiver_is_in_no_line(chain: StartChain) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1/traces?api_key=hunter2"
        env = exporting_to("", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=url, OTEL_EXPORTER_OTLP_TIMEOUT="2")
        async with chain("--log-level", "debug", env=env) as (running, far, near):
            await call(near, far)
            (line,) = await running.logged("spans are not exported")
            await running.end()
    assert "Connection refused" in str(line["cause"])
    assert "/v1/traces?[not shown]" in str(line["cause"])
    assert not [text for text in running.program.lines if "hunter2" in text]


@pytest.mark.asyncio
async def test_a_receiver_that_never_answers_delays_the_end_by_at_most_a_second(chain: StartChain) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = exporting_to(f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with chain(env=env) as (running, far, near):
            await call(near, far)
            await near.close()
            started = asyncio.get_running_loop().time()
            log = await running.end()
            assert asyncio.get_running_loop().time() - started < 5
        assert "the last spans are lost: the receiver did not take them in time" in [line["message"] for line in log]
        assert running.program.returncode == 0


@pytest.mark.asyncio
async def test_a_variable_that_opentelemetry_cannot_read_is_named_without_its_value(chain: StartChain) -> None:
    wrong = {"OTEL_BSP_MAX_QUEUE_SIZE": "pasted-1", "OTEL_EXPORTER_OTLP_HEADERS": "authorization pasted-2"}
    async with chain(env=exporting_to("http://127.0.0.1:1", **wrong)) as (running, _, near):
        await near.close()
        log = await running.end()
    lines = [line for line in log if line["message"] == "OpenTelemetry has a problem"]
    reasons = [str(line["reason"]) for line in lines]
    assert "Unable to parse value for OTEL_BSP_MAX_QUEUE_SIZE as integer. Defaulting to 2048." in reasons
    assert any(reason.startswith("Header format invalid!") for reason in reasons)
    assert "pasted" not in str(lines)


@pytest.mark.asyncio
async def test_spans_that_find_the_queue_full_are_told_in_words(chain: StartChain) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        full = {"OTEL_BSP_MAX_QUEUE_SIZE": "2", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}
        env = exporting_to(f"http://127.0.0.1:{silent.getsockname()[1]}", **full)
        async with chain(env=env) as (running, far, near):
            for _ in range(6):
                await call(near, far)
            (line,) = await running.logged("OpenTelemetry has a problem")
    assert line["severity"] == "WARNING"
    assert str(line["reason"]).startswith("Queue full, dropping")
    assert "%" not in str(line["reason"])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
    ],
)
async def test_opentelemetry_is_not_loaded_unless_a_variable_asks_for_traces(
    chain: StartChain, tmp_path: Path, environment: Mapping[str, str], expected: bool
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        f"at = {str(tmp_path)!r} + f'/modules-{{os.getpid()}}'\n"
        "atexit.register(lambda: open(at, 'w').write('\\n'.join(sys.modules)))\n"
    )
    async with chain(env={**environment, "PYTHONPATH": str(tmp_path)}) as (running, far, near):
        await call(near, far)
        await running.end()
    loaded = (tmp_path / f"modules-{running.program.pid}").read_text().split("\n")
    found = [name for name in loaded if name.split(".")[0] in ("opentelemetry", "requests") or name.endswith(".traces")]
    assert bool(found) == expected


@pytest.mark.asyncio
async def test_a_missing_extra_is_one_warning_with_the_install_command(chain: StartChain, tmp_path: Path) -> None:
    env = {**exporting_to("http://127.0.0.1:4318"), "PYTHONPATH": python_path_without("opentelemetry", tmp_path)}
    config = tmp_path / "routes.toml"
    config.write_text('[routes.svc]\nurl = "https://127.0.0.1:1"\n')
    argv = [sys.executable, "-S", "-m", "proxy", "serve", "--config", str(config), "--workers", "2"]
    argv += ["--listen", "127.0.0.1:0", "--admin", "off", "--log-format", "json"]
    async with program("cloudrun-sidecar", argv, env=env) as running:
        await worker_pids(running)
        await running.stop()
    (line,) = [json.loads(text) for text in running.lines if "traces are off" in text]
    assert line["severity"] == "WARNING"
    assert line["reason"] == "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed"
    assert "pip install 'cloudrun-sidecar[otel]'" in line["remedy"]


@pytest.mark.asyncio
async def test_the_wait_for_a_free_stream_is_told_from_that_for_a_connection(chain: StartChain) -> None:
    one_stream = {"settings": {SettingCodes.MAX_CONCURRENT_STREAMS: 1}}

    async def two_at_once(near: Peer, far: Server) -> None:
        # In one write: if the second came later, the first might have ended before.
        streams = [near.queue("/svc/invoke/S/h", end=True) for _ in range(2)]
        near.flush()
        for stream in streams:
            peer, far_stream, _, _ = await far.request()
            peer.respond(far_stream, end=True)
            assert (await near.response(stream)).status == 200

    async with receiver() as received:
        env = exporting_to(received.url)
        async with chain("--max-upstream-connections", "1", env=env, upstream=one_stream) as (_, far, near):
            await two_at_once(near, far)
            assert [set(events_of(span)) for span in await received.received(2)] == [{"connect"}, {"connect"}]
            await two_at_once(near, far)
            assert [set(events_of(span)) for span in (await received.received(4))[2:]] == [set(), {"stream"}]

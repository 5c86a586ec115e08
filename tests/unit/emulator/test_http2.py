"""HTTP/2 as Google's front end speaks it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any

import h2.errors
import h2.events
import h2.settings
import pytest
from hyperframe.frame import DataFrame

from proxy.emulator import Certificates, CloudRunServer, Limits
from proxy.emulator.cloud_run_server import ABORT_SECONDS, GRACE_SECONDS
from tests.support.emulated import trusting
from tests.support.peers.sockets import Peer, Reset, client

pytestmark = pytest.mark.asyncio


WINDOW = 65_535
PARTS = 4
LINGERS_SECONDS = 0.8 * ABORT_SECONDS / 2


class Service:
    """Responds to `/open` when it is told to, to all else at once with ten octets; of `/read`, it reads before.

    `/large` has large parts before them. `/fails` and `/returns` end after a part, as their names say. `/lingers`
    ends a little after it was cancelled.
    """

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.started = asyncio.Event()
        self.parts_sent = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.started.set()
        if scope["path"] == "/lingers":
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(LINGERS_SECONDS)
        if scope["path"] in ("/open", "/read"):
            await self.end.wait()
        while scope["path"] == "/read" and (await receive())["more_body"]:
            pass
        if scope["path"] in ("/large", "/fails", "/returns"):
            part, count = (b"x" * WINDOW, PARTS) if scope["path"] == "/large" else (b"part", 1)
            for _ in range(count):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            self.parts_sent.set()
        if scope["path"] == "/fails":
            raise RuntimeError("as the test demands")
        if scope["path"] != "/returns":
            await send({"type": "http.response.body", "body": b"0123456789"})
        self.ended.set()


@contextlib.asynccontextmanager
async def _connected(
    certificates: Certificates, limits: Limits, scheme: str = "https", **options: Any
) -> AsyncIterator[tuple[Peer, Service]]:
    service = Service()
    async with CloudRunServer(service, certificates, limits=limits) as server:
        authority = server.url.removeprefix("https://")
        host, _, port = authority.rpartition(":")
        tls = trusting(certificates.ca_file, "h2")
        async with client(host, int(port), tls=tls, scheme=scheme, authority=authority, **options) as peer:
            yield peer, service


def _seen(peer: Peer, kind: type[Any]) -> list[Any]:
    return [event for event in peer.seen if isinstance(event, kind)]


async def test_its_limits_are_advertised_and_data_is_padded(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(concurrent_streams=7, field_section_octets=65_536)) as (peer, _):
        stream = peer.open("/", end=True)
        assert (await peer.response(stream)).content == b"0123456789"
        settings = peer.h2.remote_settings
        assert (settings.max_concurrent_streams, settings.max_header_list_size) == (7, 65_536)
        assert settings.initial_window_size == 1_048_576
        assert peer.h2.outbound_flow_control_window == 1_048_576
        assert settings.enable_connect_protocol == 0
        # One octet tells how much padding follows.
        (data,) = [event for event in _seen(peer, h2.events.DataReceived) if event.data]
        assert data.flow_controlled_length == 10 + 8 + 1


async def test_the_limits_of_http2_itself_can_be_chosen(certificates: Certificates) -> None:
    async with _connected(certificates, Limits.plain()) as (peer, _):
        assert (await peer.response(peer.open("/", end=True))).status == 200
        assert peer.h2.remote_settings.initial_window_size == peer.h2.outbound_flow_control_window == 65_535
        (data,) = [event for event in _seen(peer, h2.events.DataReceived) if event.data]
        assert data.flow_controlled_length == 10


async def test_content_above_the_window_of_a_stream_ends_the_connection(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(stream_window_octets=1_000)) as (peer, _):
        await peer.ping()  # the settings came, and were acknowledged
        assert peer.h2.remote_settings.initial_window_size == 1_000
        stream = peer.open("/open")
        peer.raw(DataFrame(stream, b"x" * 1_001))
        assert (await peer.went_away).error_code == h2.errors.ErrorCodes.FLOW_CONTROL_ERROR


async def test_the_window_of_a_stream_opens_when_the_container_reads(certificates: Certificates) -> None:
    limits = Limits(stream_window_octets=1_000, connection_window_octets=65_535)
    async with _connected(certificates, limits) as (peer, service):
        await peer.ping()
        stream = peer.open("/read")
        await peer.send(stream, b"x" * 1_000)
        await peer.ping()
        assert peer.h2.local_flow_control_window(stream) == 0
        # One stream does not stop another, and its connection stays open.
        assert (await peer.response(peer.open("/", end=True))).status == 200
        service.end.set()
        await peer.send(stream, b"x" * 200_000, end=True)
        assert (await peer.response(stream)).content == b"0123456789"


async def test_a_client_can_finish_a_request_whose_response_has_ended(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(stream_window_octets=1_000)) as (peer, _):
        await peer.ping()
        stream = peer.open("/")
        await peer.send(stream, b"x" * 1_000)
        assert (await peer.response(stream)).status == 200
        await peer.send(stream, b"x" * 5_000, end=True)
        assert not peer.went_away.done()


async def test_what_was_received_before_the_end_of_a_response_is_given_back(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(stream_window_octets=1_000)) as (peer, service):
        await peer.ping()
        stream = peer.open("/open")
        await peer.send(stream, b"x" * 1_000)
        await peer.ping()
        service.end.set()
        assert (await peer.response(stream)).status == 200
        await peer.send(stream, b"x" * 5_000, end=True)


async def test_a_smaller_window_holds_from_the_acknowledgement_of_the_settings(certificates: Certificates) -> None:
    limits = Limits(stream_window_octets=1_000, connection_window_octets=200_000)
    async with _connected(certificates, limits, made=lambda peer: peer.transport.pause_reading()) as (peer, service):
        stream = peer.open("/read")
        service.end.set()
        peer.h2.send_data(stream, b"x" * 16_384)  # before the settings were read
        peer.flush()
        peer.transport.resume_reading()
        await peer.ping()
        assert peer.h2.local_flow_control_window(stream) <= 1_000
        await peer.send(stream, b"x" * 2_000, end=True)
        assert peer.h2.outbound_flow_control_window > 100_000
        assert (await peer.response(stream)).content == b"0123456789"


async def test_it_pings_while_content_is_received(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.emulator.http2.PING_SECONDS", 0.0)
    async with _connected(certificates, Limits()) as (peer, service):
        stream = peer.open("/open")
        await service.started.wait()
        await peer.send(stream, b"x", end=True)
        service.end.set()
        assert (await peer.response(stream)).status == 200
        assert len(_seen(peer, h2.events.PingReceived)) == 1


async def test_a_foreign_scheme_and_connect_are_refused(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(), "http") as (peer, _):
        malformed = await peer.response(peer.open("/", end=True))
        assert (malformed.status, malformed.fields[b"server"]) == (400, b"Google Frontend")
        assert parsedate_to_datetime(malformed.fields[b"date"].decode()).year > 2000
        assert malformed.fields.keys() >= {b"alt-svc", b"x-cloud-trace-context", b"content-type"}
        refused = peer.h2.get_next_available_stream_id()
        peer.h2.send_headers(refused, [(b":method", b"CONNECT"), (b":authority", b"other.example:443")])
        await peer.send(refused, b"x", end=True)
        assert (await peer.response(refused)).status == 405
        assert not peer.went_away.done()


async def test_a_stream_above_the_limit_is_refused_and_the_others_are_answered(certificates: Certificates) -> None:
    async with _connected(certificates, Limits()) as (peer, service):
        first = peer.open("/open", end=True)
        await service.started.wait()  # its settings came, and ours are applied
        held = [first, *(peer.open("/open") for _ in range(99))]
        # h2's client would not send a request above the limit by itself.
        peer.h2.remote_settings.update({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1_000})
        peer.h2.remote_settings.acknowledge()
        refused = peer.open("/open")
        peer.h2.send_data(refused, b"content that is dropped", end_stream=True)
        with pytest.raises(Reset) as caught:
            await peer.response(refused)
        assert caught.value.code == h2.errors.ErrorCodes.REFUSED_STREAM
        for stream in held[1:]:
            peer.h2.send_data(stream, b"", end_stream=True)
        peer.flush()
        service.end.set()
        for stream in held:
            assert (await peer.response(stream)).content == b"0123456789"
        assert (await peer.response(peer.open("/", end=True))).status == 200
        assert not peer.went_away.done()


@pytest.mark.parametrize("why", ["limit", "scheme"])
async def test_a_refused_stream_that_its_client_resets_at_once_is_no_failure(
    certificates: Certificates, why: str
) -> None:
    scheme = "https" if why == "limit" else "http"
    async with _connected(certificates, Limits(concurrent_streams=1), scheme) as (peer, service), asyncio.timeout(10):
        other = peer.open("/open", end=True)  # which is open, or refused with 400
        await peer.head(other)
        peer.h2.remote_settings.update({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1_000})
        peer.h2.remote_settings.acknowledge()
        refused = peer.queue("/")
        peer.reset(refused, h2.errors.ErrorCodes.CANCEL)  # in the same packet
        await peer.ping()
        service.end.set()
        assert await peer.body(other)


async def test_a_request_that_comes_while_the_server_stops_is_refused(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.emulator.cloud_run_server.GRACE_SECONDS", 30.0)
    service, stack = Service(), contextlib.AsyncExitStack()
    server = await stack.enter_async_context(CloudRunServer(service, certificates))
    host, _, port = server.url.removeprefix("https://").rpartition(":")
    tls = trusting(certificates.ca_file, "h2")
    async with client(host, int(port), tls=tls, scheme="https", authority=f"{host}:{port}") as peer:
        stream = peer.open("/open", end=True)
        await peer.head(stream)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stack.aclose())
            await peer.ping()
            late = peer.open("/late", end=True)
            with pytest.raises(Reset) as caught:
                await peer.response(late)
            assert caught.value.code == h2.errors.ErrorCodes.REFUSED_STREAM
            service.end.set()
            assert await peer.body(stream) == b"0123456789"


async def test_an_old_connection_ends_in_two_steps_and_its_stream_is_answered(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(age_seconds=0.05, notice_seconds=0.05)) as (peer, service):
        stream = peer.open("/open", end=True)
        await service.started.wait()
        await peer.went_away
        refused = peer.open("/early-enough", end=True)
        assert (await peer.response(refused)).status == 200
        while len(_seen(peer, h2.events.ConnectionTerminated)) < 2:
            await peer.ping()
        late = peer.open("/late", end=True)
        with pytest.raises(Reset) as caught:
            await peer.response(late)
        assert caught.value.code == h2.errors.ErrorCodes.REFUSED_STREAM
        service.end.set()
        assert (await peer.response(stream)).content == b"0123456789"
        await peer.closed
        first, second = (event.last_stream_id for event in _seen(peer, h2.events.ConnectionTerminated))
        assert (first, second) == (2**31 - 1, refused)


async def test_an_idle_connection_ends_with_goaway(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(idle_seconds=0.05)) as (peer, _):
        stream = peer.open("/", end=True)
        assert (await peer.response(stream)).status == 200
        assert (await peer.went_away).last_stream_id == stream
        await peer.closed


async def test_a_container_waits_for_a_client_that_does_not_read(certificates: Certificates) -> None:
    async with _connected(certificates, Limits.plain(), acknowledging=False) as (peer, service), asyncio.timeout(10):
        stream = peer.open("/large", end=True)
        while sum(peer.data_frames[stream]) < WINDOW:
            await peer.data(stream)
        for _ in range(16 * PARTS):  # as many rounds of the server's loop
            await peer.ping()
        assert not service.parts_sent.is_set()
        peer.acknowledging = True
        peer.acknowledge(stream)
        await peer.rest(stream)
        assert sum(peer.data_frames[stream]) == PARTS * WINDOW + 10


@pytest.mark.parametrize("how", ["reset", "disconnect"])
async def test_a_client_that_leaves_does_not_keep_the_container_waiting(certificates: Certificates, how: str) -> None:
    async with _connected(certificates, Limits(), acknowledging=False) as (peer, service), asyncio.timeout(10):
        stream = peer.open("/large", end=True)
        await peer.data(stream)
        if how == "reset":
            peer.reset(stream, h2.errors.ErrorCodes.CANCEL)
        else:
            peer.transport.abort()
        await service.ended.wait()


@pytest.mark.parametrize("path", ["/fails", "/returns"])
async def test_a_response_that_the_container_does_not_end_is_reset(certificates: Certificates, path: str) -> None:
    async with _connected(certificates, Limits()) as (peer, _), asyncio.timeout(10):
        stream = peer.open(path, end=True)
        assert await peer.data(stream) == b"part"
        with pytest.raises(Reset) as caught:
            await peer.body(stream)
        assert caught.value.code == h2.errors.ErrorCodes.INTERNAL_ERROR
        assert (await peer.response(peer.open("/", end=True))).content == b"0123456789"


async def test_a_connection_that_is_going_away_is_open_until_its_last_goaway(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(age_seconds=0.0, notice_seconds=60)) as (peer, _), asyncio.timeout(10):
        await peer.went_away
        await peer.ping()
        assert (await peer.response(peer.open("/", end=True))).content == b"0123456789"
        await peer.ping()
        await peer.ping()


async def test_a_connection_that_is_going_away_ends_when_its_client_has_read_all(certificates: Certificates) -> None:
    async with _connected(certificates, Limits(age_seconds=0.05, notice_seconds=0.0)) as (peer, service):
        stream = peer.open("/open", end=True)
        await peer.head(stream)
        while len(_seen(peer, h2.events.ConnectionTerminated)) < 2:
            await peer.ping()
        service.end.set()
        assert await peer.body(stream) == b"0123456789"
        await peer.closed
        # Its acknowledgement tells the front end that all before it was read.
        assert isinstance(peer.seen[-1], h2.events.PingReceived)


async def test_a_client_that_goes_away_gets_its_response(certificates: Certificates) -> None:
    async with _connected(certificates, Limits()) as (peer, service), asyncio.timeout(10):
        stream = peer.open("/open", end=True)
        await peer.head(stream)
        peer.go_away(0)
        await peer.ping()
        late = peer.open("/late", end=True)
        with pytest.raises(Reset) as caught:
            await peer.response(late)
        assert caught.value.code == h2.errors.ErrorCodes.REFUSED_STREAM
        service.end.set()
        assert await peer.body(stream) == b"0123456789"
        await peer.closed


async def test_a_client_that_goes_away_without_a_stream_ends_the_connection(certificates: Certificates) -> None:
    async with _connected(certificates, Limits()) as (peer, _), asyncio.timeout(10):
        peer.go_away(0)
        await peer.closed


@pytest.mark.parametrize("last", ["reset", "refusal"])
async def test_a_connection_is_idle_after_a_reset_and_after_a_refusal(certificates: Certificates, last: str) -> None:
    scheme = "https" if last == "reset" else "http"
    async with _connected(certificates, Limits(idle_seconds=0.05), scheme) as (peer, _), asyncio.timeout(10):
        stream = peer.open("/open", end=True)
        await peer.head(stream)
        if last == "reset":
            peer.reset(stream, h2.errors.ErrorCodes.CANCEL)
        assert (await peer.went_away).last_stream_id == stream
        await peer.closed


async def test_a_client_that_leaves_between_the_two_goaways_is_no_failure(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with _connected(certificates, Limits(age_seconds=0.0, notice_seconds=0.05)) as (peer, _):
        await peer.went_away
        peer.transport.abort()
        await peer.closed
        await asyncio.sleep(0.1)  # the second GOAWAY is due
    assert not [record for record in caplog.records if "failed" in record.message]


async def test_a_connection_does_not_grow_old_while_its_server_ends(certificates: Certificates) -> None:
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    cancelled_after = GRACE_SECONDS + ABORT_SECONDS / 2
    async with _connected(certificates, Limits(age_seconds=cancelled_after + LINGERS_SECONDS / 2)) as (peer, service):
        peer.open("/lingers", end=True)
        await service.started.wait()
    assert not raised

"""Connecting to peers on real sockets: HTTP/2 with and without TLS, and the error sentence for each peer that fails."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from typing import Any

import pytest
from h2.settings import SettingCodes

from proxy.emulator import Certificates
from proxy.errors import (
    UpstreamConnectFailed,
    UpstreamConnectionLost,
    UpstreamConnectTimeout,
    UpstreamFailure,
    UpstreamNotHttp2,
    UpstreamTlsFailed,
)
from proxy.http2.choice import EngineFactory
from proxy.network.resolver import AddressInfo, Resolver
from proxy.observe.observer import UpstreamObserver
from proxy.routes import Origin
from proxy.upstream.connection import Timing, UpstreamConnection
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import Unprocessed
from tests.support.peers.raw import REQUEST
from tests.support.peers.receivers import RecordingReceiver
from tests.support.peers.sockets import server, server_context
from tests.unit.upstream.connecting import connector, left, listening

# ---- what works


class Observing(UpstreamObserver):
    """Keeps the origins whose connections are going away."""

    def __init__(self) -> None:
        self.going_away: list[str] = []

    def upstream_going_away(self, origin: str, code: int, debug: bytes) -> None:
        self.going_away.append(origin)


@each_bare_engine
@pytest.mark.asyncio
async def test_a_connection_over_tls_is_ready_when_it_is_returned(
    make: EngineFactory, certificates: Certificates
) -> None:
    tls = server_context(*certificates.server_files("localhost"))
    asked_for: list[str | None] = []
    tls.sni_callback = lambda _, name, __: asked_for.append(name)
    async with server(tls, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 7}) as far:
        observer, origin = Observing(), Origin("https", "localhost", far.port)
        connection = await connector(make, upstream_ca=certificates.ca_file, observer=observer).connect(origin)
        assert connection.count_free_streams() == 7
        assert asked_for == ["localhost"]
        assert connection.transport is not None
        assert connection.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        receiver = RecordingReceiver()
        connection.open(REQUEST, True, receiver)
        peer, _, fields, ended = await far.request()
        assert (b":path", b"/invoke/Greeter/greet") in fields
        assert ended
        peer.go_away(0)
        await connection.gone
        assert observer.going_away == [str(origin)]
        assert receiver.kinds == [Unprocessed]


@each_bare_engine
@pytest.mark.asyncio
async def test_plain_http_upstreams_speak_http2_from_the_first_octet(make: EngineFactory) -> None:
    async with server() as far:
        connection = await connector(make).connect(Origin("http", "127.0.0.1", far.port))
        assert connection.count_free_streams() == 1000
        assert connection.transport is not None
        assert connection.transport.get_extra_info("ssl_object") is None
        await left(connection)


# ---- HTTP/2, or not


@pytest.mark.parametrize("alpn", [["http/1.1"], []], ids=["http/1.1", "none"])
@pytest.mark.asyncio
async def test_a_peer_that_does_not_choose_h2_is_reported_and_closed(
    certificates: Certificates, alpn: list[str]
) -> None:
    async with server(server_context(*certificates.server_files("127.0.0.1"), alpn=alpn)) as far:
        with pytest.raises(UpstreamNotHttp2, match="gcloud run deploy --use-http2"):
            await connector(upstream_ca=certificates.ca_file).connect(Origin("https", "127.0.0.1", far.port))


@pytest.mark.asyncio
async def test_a_peer_that_refuses_alpn_is_reported() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(bytes.fromhex("15 0303 0002 02 78"))  # fatal alert: no_application_protocol (RFC 7301, 3.2)
        await reader.read()

    async with listening(refuse) as port:
        with pytest.raises(UpstreamNotHttp2, match=r"\(ALPN h2\).*--use-http2"):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_plain_http1_peer_is_reported() -> None:
    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with listening(http1) as port:
        with pytest.raises(UpstreamNotHttp2, match="--use-http2"):
            await connector().connect(Origin("http", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_plain_peer_behind_an_https_url_is_reported() -> None:
    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with listening(http1) as port:
        with pytest.raises(UpstreamTlsFailed, match="check that it is an https:// service, and its port"):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_tls_peer_behind_an_http_url_is_reported(certificates: Certificates) -> None:
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        with pytest.raises((UpstreamNotHttp2, UpstreamConnectionLost), match="HTTP/2"):
            await connector().connect(Origin("http", "127.0.0.1", far.port))


# ---- peers that fail


@pytest.mark.asyncio
async def test_a_refused_connection_is_reported() -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            UpstreamConnectFailed, match=rf"https://127\.0\.0\.1:{port} .*\(Connection refused\); check"
        ):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_name_that_does_not_resolve_is_reported() -> None:
    with pytest.raises(UpstreamConnectFailed, match=r"the host name of https://nowhere\.invalid does not resolve"):
        await connector(connect_timeout_seconds=30.0).connect(Origin("https", "nowhere.invalid", 443))


@pytest.mark.parametrize(
    ("number", "check"),
    [(socket.EAI_NONAME, "check the url of the route"), (socket.EAI_AGAIN, "check the name servers of this machine")],
)
@pytest.mark.asyncio
async def test_a_resolvers_own_words_are_reported(number: int, check: str) -> None:
    class Refusing(Resolver):
        async def resolve(self, host: str, port: int) -> list[AddressInfo]:
            raise socket.gaierror(number, "in its words")

    with pytest.raises(UpstreamConnectFailed, match=rf"does not resolve \(in its words\); {check}"):
        await connector(resolver=Refusing()).connect(Origin("https", "greeter.example", 443))


@pytest.mark.asyncio
async def test_a_name_that_is_not_answered_is_told_from_a_connection_that_is_not() -> None:
    class Silent(Resolver):
        async def resolve(self, host: str, port: int) -> list[AddressInfo]:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    sentence = r"the host name of https://greeter\.example was not answered within 0\.1 s; check the name servers"
    with pytest.raises(UpstreamConnectTimeout, match=sentence):
        await connector(resolver=Silent(), connect_timeout_seconds=0.1).connect(Origin("https", "greeter.example", 443))


@pytest.mark.asyncio
async def test_a_descriptor_that_is_reserved_is_not_used_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.connector.is_reserved", lambda descriptor, to_service: True)
    left_behind = asyncio.get_running_loop().create_future()

    async def nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        left_behind.set_result(await reader.read())

    async with listening(nothing) as port:
        with pytest.raises(UpstreamConnectFailed, match="the limit of open files is nearly reached; raise it"):
            await connector().connect(Origin("http", "127.0.0.1", port))
        assert await left_behind == b""


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.asyncio
async def test_a_peer_that_closes_during_the_handshake_is_reported(how: str) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if how == "resets":
            option = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)

    async with listening(end) as port:
        with pytest.raises(UpstreamConnectFailed, match=rf"https://127\.0\.0\.1:{port} cannot be connected to \(\w+"):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.asyncio
async def test_a_silent_peer_is_closed_at_the_deadline(scheme: str) -> None:
    left_behind = asyncio.get_running_loop().create_future()

    async def nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        left_behind.set_result(await reader.read())

    async with listening(nothing) as port:
        with pytest.raises(UpstreamConnectTimeout, match=r"was not connected within 0\.2 s"):
            await connector(connect_timeout_seconds=0.2).connect(Origin(scheme, "127.0.0.1", port))
        await left_behind


@pytest.mark.asyncio
async def test_a_peer_that_sends_no_settings_is_closed_at_the_deadline(certificates: Certificates) -> None:
    left_behind = asyncio.get_running_loop().create_future()

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            left_behind.set_result(await reader.read())
        except ConnectionError:
            left_behind.set_result(b"")
        writer.close()

    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with await asyncio.start_server(nothing, "127.0.0.1", 0, ssl=tls) as accepting:
        port = accepting.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamConnectTimeout, match="SETTINGS"):
            await connector(connect_timeout_seconds=1.0, upstream_ca=certificates.ca_file).connect(
                Origin("https", "127.0.0.1", port)
            )
        await left_behind


@pytest.mark.asyncio
async def test_a_peer_that_closes_before_its_settings_is_reported() -> None:
    async def end(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(64)

    async with listening(end) as port:
        with pytest.raises(UpstreamConnectionLost, match=r"ended before it was usable .*; check the url of the route"):
            await connector().connect(Origin("http", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_what_was_changed_holds_for_the_next_connection() -> None:
    async def nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server() as far, listening(nothing) as silent:
        connecting, timing = connector(), Timing(idle_timeout_seconds=0.1)
        connecting.change(timing=timing, upstream_ca=None, upstream_proxy=None, connect_timeout_seconds=0.2)
        with pytest.raises(UpstreamConnectTimeout, match=r"was not connected within 0\.2 s"):
            await connecting.connect(Origin("http", "127.0.0.1", silent))
        connection = await connecting.connect(Origin("http", "127.0.0.1", far.port))
        async with asyncio.timeout(30.0):
            await connection.gone


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.asyncio
async def test_a_cancelled_connect_leaves_nothing_behind(scheme: str) -> None:
    arrived, left_behind = asyncio.Event(), asyncio.Event()

    async def nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)
        arrived.set()
        await reader.read()
        left_behind.set()

    async with listening(nothing) as port:
        dial = asyncio.get_running_loop().create_task(connector().connect(Origin(scheme, "127.0.0.1", port)))
        await arrived.wait()
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial
        await left_behind.wait()


def count_connections() -> int:
    """Return how many there are, usable or not."""
    gc.collect()
    return sum(1 for one in gc.get_objects() if type(one) is UpstreamConnection)


@pytest.mark.parametrize("peer", ["untrusted", "silent", "not TLS", "cancelled"])
@pytest.mark.asyncio
async def test_a_connection_that_fails_is_not_kept(certificates: Certificates, peer: str) -> None:
    """The budget would keep it for ever, because no transport tells it of its end."""
    before, arrived = count_connections(), asyncio.Event()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        arrived.set()
        if peer == "not TLS":
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far, listening(converse) as port:
        origin = Origin("https", "127.0.0.1", far.port if peer == "untrusted" else port)
        made = connector(connect_timeout_seconds=30.0 if peer == "cancelled" else 0.5)
        for _ in range(4):
            arrived.clear()
            attempt = asyncio.get_running_loop().create_task(made.connect(origin))
            if peer == "cancelled":
                await arrived.wait()
                attempt.cancel()
            with pytest.raises(asyncio.CancelledError if peer == "cancelled" else UpstreamFailure):
                await attempt
        # The frames of the last exception may have one.
        assert count_connections() <= before + 1
    assert not [context for context in reported if "never retrieved" in context["message"]], (
        "the failure is raised, and no future reports it again"
    )

"""Connecting through an HTTP proxy: what it is asked, which upstreams go without, and a sentence for each refusal."""

from __future__ import annotations

import asyncio
import re

import pytest

from proxy.emulator import Certificates
from proxy.errors import UpstreamConnectFailed, UpstreamConnectTimeout, UpstreamTlsFailed
from proxy.network.http_proxy import HttpProxy
from proxy.network.resolver import Resolver
from proxy.quoting import masked
from proxy.routes import Origin
from proxy.upstream.tunnel import tunnels_to
from tests.support.peers.connect_proxy import connect_proxy
from tests.support.peers.raw import REQUEST
from tests.support.peers.receivers import RecordingReceiver
from tests.support.peers.sockets import server, server_context
from tests.unit.upstream.connecting import connector, left, listening

HOST = "greeter.example"
ORIGIN = Origin("https", HOST, 443)


def proxy_at(port: int, login: str | None = None) -> HttpProxy:
    return HttpProxy(host="127.0.0.1", port=port, login=login)


@pytest.mark.asyncio
@pytest.mark.parametrize("login", [None, "ada:s3cret"])
@pytest.mark.parametrize(("host", "target"), [(HOST, f"{HOST}:443"), ("2001:db8::1", "[2001:db8::1]:443")])
async def test_a_service_is_reached_through_the_proxy_which_resolves_its_name(
    certificates: Certificates, login: str | None, host: str, target: str
) -> None:
    tls = server_context(*certificates.server_files(host))
    async with server(tls) as far, connect_proxy({target: far.port}, login=login) as proxy:
        opener = connector(upstream_ca=certificates.ca_file, upstream_proxy=proxy_at(proxy.port, login))
        connection = await opener.connect(Origin("https", host, 443))
        connection.open(REQUEST, True, RecordingReceiver())
        _, _, fields, _ = await far.request()
        assert (b":path", b"/invoke/Greeter/greet") in fields
        await left(connection)
    assert proxy.targets() == [target]
    sent = re.findall(rb"\r\n(proxy-authorization:[^\r]*)\r\n", proxy.heads[0])
    assert sent == ([] if login is None else [b"proxy-authorization: Basic YWRhOnMzY3JldA=="])
    assert f"\r\nhost: {target}\r\n".encode() in proxy.heads[0]


@pytest.mark.asyncio
async def test_the_certificate_is_that_of_the_service_and_not_of_the_proxy(certificates: Certificates) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far, connect_proxy({f"{HOST}:443": far.port}) as proxy:
        with pytest.raises(UpstreamTlsFailed, match=r"the certificate of https://greeter\.example does not verify"):
            await connector(upstream_ca=certificates.ca_file, upstream_proxy=proxy_at(proxy.port)).connect(ORIGIN)


@pytest.mark.parametrize(
    ("origin", "no_proxy", "tunnels"),
    [
        (ORIGIN, "", True),
        (ORIGIN, "other.example,.run.app", True),
        (ORIGIN, "other.example, greeter.example", False),
        (ORIGIN, ".example", False),
        (ORIGIN, "*", False),
        (Origin("https", "127.0.0.1", 443), "", False),
        (Origin("https", "localhost", 443), "", False),
        (Origin("https", "10.0.0.1", 443), "", True),
        (Origin("http", "10.0.0.1", 80), "", False),
    ],
)
def test_loopback_http_upstreams_and_hosts_in_no_proxy_are_reached_directly(
    origin: Origin, no_proxy: str, tunnels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", no_proxy)
    assert tunnels_to(origin) == tunnels


@pytest.mark.asyncio
async def test_an_upstream_that_is_reached_directly_is_not_connected_through_the_proxy() -> None:
    async with server() as far, connect_proxy({}) as proxy:
        connection = await connector(upstream_proxy=proxy_at(proxy.port)).connect(Origin("http", "127.0.0.1", far.port))
        await left(connection)
        assert not proxy.heads


@pytest.mark.asyncio
async def test_a_change_of_the_proxy_counts_for_the_next_connection(certificates: Certificates) -> None:
    tls = server_context(*certificates.server_files(HOST))
    async with (
        server(tls) as far,
        connect_proxy({f"{HOST}:443": far.port}) as old,
        connect_proxy({f"{HOST}:443": far.port}) as new,
    ):
        opener = connector(upstream_ca=certificates.ca_file, upstream_proxy=proxy_at(old.port))
        await left(await opener.connect(ORIGIN))
        opener.change(
            timing=opener._timing,
            upstream_ca=certificates.ca_file,
            upstream_proxy=proxy_at(new.port),
            connect_timeout_seconds=5.0,
        )
        await left(await opener.connect(ORIGIN))
    assert (len(old.heads), len(new.heads)) == (1, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, r"the proxy \S+ \(upstream_proxy\) requires a login \(407\); write \S+ into the setting"),
        ("ada:hunter2", r"the proxy \S+ \(upstream_proxy\) refuses the login in its URL \(407\)"),
    ],
)
async def test_a_proxy_that_asks_for_another_login_is_named_without_the_login(given: str | None, sentence: str) -> None:
    async with connect_proxy({}, login="ada:s3cret") as proxy:
        with pytest.raises(UpstreamConnectFailed, match=sentence) as failure:
            await connector(upstream_proxy=proxy_at(proxy.port, given)).connect(ORIGIN)
    assert "hunter2" not in str(failure.value)
    assert masked(str(failure.value)) == str(failure.value), "a log line has all of the remedy"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            b"HTTP/1.1 403 Not on the list\r\n\r\n",
            r"does not connect to greeter\.example:443 \(403 Not on the list\); allow it there",
        ),
        (
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM\r\n\r\n",
            r"wants a login by Negotiate, NTLM \(407\), and only Basic is supported",
        ),
        (b"HTTP/1.0 504\r\n\r\n", r"does not connect to greeter\.example:443 \(504\); see its log, or list"),
        (b"HTTP/1.0 403 Bare line feeds\n\n", r"does not connect to greeter\.example:443 \(403 Bare line feeds\)"),
        (b"SSH-2.0-OpenSSH_9\r\n", r"does not answer as an HTTP proxy does; check upstream_proxy"),
        (b"HTTP/1.1 OK\r\n\r\n", r"does not answer as an HTTP proxy does"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 4000, r"does not answer as an HTTP proxy does"),
        (b"", r"closed the connection before it answered"),
    ],
)
async def test_another_answer_than_a_tunnel_is_reported_with_the_proxys_words(answer: bytes, sentence: str) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if answer:
            await reader.read()  # the client sees what is wrong, and does not wait for more

    async with listening(say) as port:
        with pytest.raises(
            UpstreamConnectFailed, match=rf"the proxy 127\.0\.0\.1:{port} \(upstream_proxy\) {sentence}"
        ):
            await connector(upstream_proxy=proxy_at(port)).connect(ORIGIN)


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [7, 4096])
@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.0 102\n\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx: y\r\n\r\n",
        b"HTTP/1.1 199 Wait\r\na: b\r\n\r\n" * 2000,
    ],
)
async def test_interim_answers_of_a_proxy_are_no_answer(interim: bytes, size: int) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        answer = interim + b"HTTP/1.1 403 Not on the list\r\n\r\n"
        for start in range(0, len(answer), size):
            writer.write(answer[start : start + size])
            await writer.drain()
        await reader.read()

    async with listening(say) as port:
        with pytest.raises(
            UpstreamConnectFailed, match=r"does not connect to greeter\.example:443 \(403 Not on the list"
        ):
            await connector(upstream_proxy=proxy_at(port)).connect(ORIGIN)


@pytest.mark.asyncio
async def test_a_proxy_that_does_not_answer_costs_no_more_than_connect_timeout() -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""
        gone.set()

    async with listening(wait) as port:
        sentence = rf"was not connected within 0\.3 s .*, through the proxy 127\.0\.0\.1:{port} \(upstream_proxy\)"
        with pytest.raises(UpstreamConnectTimeout, match=sentence):
            await connector(connect_timeout_seconds=0.3, upstream_proxy=proxy_at(port)).connect(ORIGIN)
        await gone.wait()


@pytest.mark.asyncio
async def test_who_waits_for_a_tunnel_is_told_of_the_proxy() -> None:
    resolver = Resolver()
    opener = connector(upstream_proxy=HttpProxy(host="proxy.example", port=3128), resolver=resolver)
    assert opener.delay(ORIGIN) == "check upstream_proxy (proxy.example:3128), and the network in between"
    looking_up = asyncio.get_running_loop().create_task(resolver.resolve("proxy.example", 3128))
    await asyncio.sleep(0)
    assert opener.delay(ORIGIN).startswith("the host name of the proxy proxy.example:3128 is not answered; check the")
    looking_up.cancel()


@pytest.mark.asyncio
async def test_a_proxy_that_is_not_there_or_whose_name_does_not_resolve_is_named_as_the_cause() -> None:
    async with listening(lambda reader, writer: asyncio.sleep(0)) as port:
        pass
    sentence = (
        f"{ORIGIN} cannot be connected to through the proxy 127.0.0.1:{port} (Connection refused); check upstream_proxy"
    )
    with pytest.raises(UpstreamConnectFailed, match=re.escape(sentence)):
        await connector(upstream_proxy=proxy_at(port)).connect(ORIGIN)
    nowhere = HttpProxy(host="proxy.invalid", port=3128)
    with pytest.raises(UpstreamConnectFailed, match=r"the host name of the proxy proxy\.invalid:3128 does not resolve"):
        await connector(upstream_proxy=nowhere).connect(ORIGIN)

"""HTTP/1.1 requests that are refused: malformed ones, and those of web pages."""

from __future__ import annotations

import asyncio

import pytest

from proxy.downstream.http1 import browser_refusal
from tests.support.allocations import traced_octets
from tests.support.loops import loop_idle
from tests.unit.downstream.http1_requests import GET, POST, head_of, lives, read_until_gone
from tests.unit.downstream.malformed import CHUNKED, FAULTS
from tests.unit.downstream.stage import listening

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /svc/x HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n", b"400"),
        (b"GET /svc/\xc3\xa4 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (POST + b"Content-Length: -1\r\n\r\n", b"400"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"501"),
        (POST + b"A: " + b"a" * 9_000 + b"\r\n\r\n", b"431"),
        (POST + b"A: b\r\n" * 300 + b"\r\n", b"431"),
        (POST + b"A: " + b"a" * 2_000_000, b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), b"400"),  # TLS
        (b"PRI * HTTP/1.1\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"505"),
    ],
)
async def test_a_malformed_request_is_refused_and_not_forwarded(request_head: bytes, status: bytes) -> None:
    async with listening(max_head_octets=8_192) as it:
        reader, _ = await it.raw(request_head)
        answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert it.relay.requests.empty()


async def test_each_malformed_request_is_answered_with_the_reason_and_ends_the_connection() -> None:
    """In particular, no second request is smuggled in (RFC 9112, 11.2)."""
    async with listening(max_head_octets=1_024) as it:
        for name, octets, status in FAULTS:
            reader, writer = await it.raw(octets + GET)
            if octets.startswith(CHUNKED):
                taken = await it.relay.request()
                assert await taken.reset == 0x8, name
                assert not taken.ended.is_set(), name
            answer = await read_until_gone(reader)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 %d " % status), (name, answer)
            assert b"\r\nx-cloudrun-sidecar-error: bad-request\r\n" in answer, name
            assert b"\r\nconnection: close\r\n" in answer.lower(), name
            answer_head, _, content = answer.partition(b"\r\n\r\n")
            assert content.startswith(b"cloudrun-sidecar: "), name
            assert b"\r\ncontent-length: %d\r\n" % len(content) in answer_head, name  # it is the only answer
            assert it.relay.requests.empty(), name


async def test_a_smuggled_request_is_not_forwarded() -> None:
    async with listening() as it:
        smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\nX: y\r\n\r\n"
        both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(smuggled)
        reader, _ = await it.raw(POST + both + smuggled)
        answer = await read_until_gone(reader)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert it.relay.requests.empty()


async def test_a_request_is_answered_before_the_malformed_one_behind_it() -> None:
    async with listening() as it:
        reader, _ = await it.raw(GET + b"\r\n" + GET.replace(b"Host:", b"Host :") + GET)
        taken = await it.relay.request()
        taken.head(200, (b"content-length", b"1"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
        taken.data(b"!", end=True)
        assert await reader.readexactly(1) == b"!"
        assert (await read_until_gone(reader)).startswith(b"HTTP/1.1 400")
        assert it.relay.requests.empty()


@pytest.mark.parametrize("more", [GET, b"\n", b"GET /svc/y"], ids=["request", "LF", "part"])
@pytest.mark.parametrize(
    "last",
    [
        GET.replace(b"1.1", b"1.0"),
        GET.replace(b"1.1", b"1.0")[:-2] + b"Connection: keep-alive\r\n\r\n",
        GET[:-2] + b"Connection: close\r\n\r\n",
    ],
    ids=["HTTP/1.0", "keep-alive", "close"],
)
async def test_what_follows_the_last_request_of_a_connection_is_ignored(last: bytes, more: bytes) -> None:
    async with listening() as it:
        reader, _ = await it.raw(last + more)
        (await it.relay.request()).answer(b"hello", (b"content-length", b"5"))
        assert (await read_until_gone(reader)).endswith(b"\r\n\r\nhello")
        assert it.counts.refused == []


async def test_what_follows_the_last_request_of_a_connection_is_not_kept_while_its_response_is_due() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET[:-2] + b"Connection: close\r\n\r\n")
        taken = await it.relay.request()
        with traced_octets() as kept:
            for _ in range(50):
                writer.write(GET * 1_000)
                await loop_idle()
            assert kept() < 500_000
        taken.answer(b"hello", (b"content-length", b"5"))
        assert (await read_until_gone(reader)).endswith(b"\r\n\r\nhello")


async def test_a_response_is_aborted_when_the_rest_of_its_request_is_malformed() -> None:
    async with listening() as it:
        reader, writer = await it.raw(CHUNKED + b"1\r\na\r\n")
        taken = await it.relay.request()
        taken.head()
        taken.data(b"half")
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
        writer.write(b"x\r\n")
        assert await read_until_gone(reader) == b"4\r\nhalf\r\n"
        assert await taken.reset == 0x8


async def test_a_client_that_sends_much_after_a_malformed_head_still_gets_the_reason() -> None:
    """Closing a socket with unread data resets it, and the answer may be lost (RFC 9112, 9.6)."""
    async with listening() as it:
        reader, writer = await it.raw(POST + b"Content-Length: 4000000, 4000000\r\n\r\n" + bytes(4_000_000))
        await writer.drain()
        writer.write_eof()
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_a_refused_head_request_is_answered_without_content() -> None:
    async with listening() as it:
        reader, _ = await it.raw(CHUNKED.replace(b"POST", b"HEAD") + b"x\r\n")
        await it.relay.request()
        answer = await read_until_gone(reader)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")


async def test_a_malformed_request_behind_a_head_request_is_answered_with_the_reason() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET.replace(b"GET", b"HEAD"))
        (await it.relay.request()).answer(b"", (b"content-length", b"5"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 ")
        writer.write(GET.replace(b"Host:", b"Host :"))
        answer = await read_until_gone(reader)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"\r\n\r\ncloudrun-sidecar: " in answer


@pytest.mark.parametrize(
    "says", [b"Origin: https://evil.example\r\n", b"Origin: null\r\n", b"Sec-Fetch-Site: cross-site\r\n"]
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
async def test_a_request_of_a_web_page_is_refused(method: bytes, says: bytes) -> None:
    async with listening() as it:
        request = method + b" /svc/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + says
        reader, _ = await it.raw(request + b"\r\n")
        answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"x-cloudrun-sidecar-error: browser-refused" in answer
        assert answer.endswith(b"\r\n\r\n") == (method == b"HEAD")
        assert it.relay.requests.empty()


@pytest.mark.parametrize(
    "host", [b"evil.example", b"evil.example:9081", b"127.0.0.1.evil.example", b"x", b"169.254.169.254.nip.io"]
)
async def test_a_request_by_dns_rebinding_is_refused(host: bytes) -> None:
    async with listening() as it:
        reader, _ = await it.raw(b"GET /svc/x HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"x-cloudrun-sidecar-error: browser-refused" in answer
        assert it.relay.requests.empty()


@pytest.mark.parametrize(
    ("server", "refused"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:10.0.0.1", False), ("10.0.0.1", False)],
)
async def test_loopback_is_recognised_in_any_notation(server: str, refused: bool) -> None:
    """A listener on [::] sees IPv4 addresses in IPv6 notation (RFC 4291, 2.5.5.2)."""
    scope = {"method": "GET", "headers": [(b"host", b"evil.example")], "server": (server, 9081)}
    assert (browser_refusal(scope) is not None) is refused


@pytest.mark.parametrize("host", [b"host.docker.internal:9081", b"host.containers.internal", b"Sidecar.Example:80"])
async def test_container_names_and_allowed_hosts_are_accepted(host: bytes) -> None:
    async with listening(allowed_hosts=("sidecar.example",)) as it:
        for request in (b"GET /svc/x", b"GET http://%s/svc/x" % host):
            reader, _ = await it.raw(request + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            taken = await it.relay.request()
            assert taken.plain[b":path"] == b"/svc/x"
            taken.answer(b"", (b"content-length", b"0"))
            assert (await head_of(reader)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "host", [b"docker.internal", b"evil.host.docker.internal", b"other.example", b"a.sidecar.example"]
)
async def test_similar_names_are_refused_and_the_refusal_names_the_setting(host: bytes) -> None:
    async with listening(allowed_hosts=("sidecar.example",)) as it:
        reader, _ = await it.raw(b"GET /svc/x HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"allowed_hosts" in answer
        assert it.relay.requests.empty()


@pytest.mark.parametrize(
    "host",
    [b"127.0.0.1", b"127.0.0.1:9081", b"[::1]", b"[::1]:9081", b"LOCALHOST:9081", b"localhost.", b"a.localhost", b""],
)
async def test_loopback_names_are_accepted(host: bytes) -> None:
    async with listening() as it:
        reader, writer = await it.raw(b"GET /svc/x HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        (await it.relay.request()).answer(b"", (b"content-length", b"0"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
        await lives(it, reader, writer)


async def test_an_address_typed_in_a_browser_is_accepted() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET[:-2] + b"Sec-Fetch-Site: none\r\n\r\n")
        (await it.relay.request()).answer(b"", (b"content-length", b"0"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
        await lives(it, reader, writer)

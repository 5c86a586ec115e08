"""Restate's admin API as a real HTTP server that answers as a test wants; the real restate-server is in `tests/e2e`."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from proxy.deployments.admin_api import AdminFailure, RestateAdmin
from proxy.exit_codes import ExitCode

TOKEN = "s3cret-token-of-the-admin-api"
DEEP = "[" * 100_000
"""More lists in each other than Python's parser takes."""
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def admin_api(
    answer: Answer, token: str | None = TOKEN, timeout_seconds: float = 30.0
) -> AsyncIterator[RestateAdmin]:
    server = web.Application()
    server.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with RestateAdmin(f"http://127.0.0.1:{port}", token, timeout_seconds) as admin:
            yield admin
    finally:
        await runner.cleanup()


def answering(status: int, body: Any, **fields: str) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, headers=fields)

    return answer


async def failure_of(answer: Answer, token: str | None = TOKEN, **headers: str) -> AdminFailure:
    async with admin_api(answer, token) as admin:
        with pytest.raises(AdminFailure) as caught:
            await admin.register(
                "http://127.0.0.1:9081/x", headers, force=False, breaking=False, http1=False, dry_run=False
            )
    assert TOKEN not in str(caught.value)
    return caught.value


@pytest.mark.asyncio
async def test_a_registration_has_all_its_fields_and_the_token() -> None:
    wishes: list[tuple[str | None, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        wishes.append((request.headers.get("authorization"), await request.json()))
        return web.json_response({"id": "dp_1", "services": []}, status=201)

    async with admin_api(answer) as admin:
        done = await admin.register("http://x/", {"x-a": "b"}, force=True, breaking=True, http1=True, dry_run=False)
        await admin.register("http://x/", {}, force=False, breaking=False, http1=False, dry_run=True)
    assert (done.id, done.is_new) == ("dp_1", True)
    assert wishes == [
        (
            f"Bearer {TOKEN}",
            {
                "uri": "http://x/",
                "force": True,
                "dry_run": False,
                "breaking": True,
                "use_http_11": True,
                "additional_headers": {"x-a": "b"},
            },
        ),
        (f"Bearer {TOKEN}", {"uri": "http://x/", "force": False, "dry_run": True}),
    ]


@pytest.mark.asyncio
async def test_no_authorization_is_sent_without_a_token() -> None:
    seen: list[bool] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append("authorization" in request.headers)
        return web.json_response({"deployments": []})

    async with admin_api(answer, token=None) as admin:
        assert await admin.deployments() == []
    assert seen == [False]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "body", "exit_code", "words"),
    [
        (401, "", ExitCode.SETTINGS_UNUSABLE, "refuses the token (401): the variable RESTATE_AUTH_TOKEN or the file"),
        (403, {"message": "no"}, ExitCode.SETTINGS_UNUSABLE, "refuses the token (403)"),
        (
            409,
            {"message": "[META0006] detected a new type.", "restate_code": "META0006"},
            ExitCode.SETTINGS_UNUSABLE,
            "Restate refuses this change: detected a new type. Add --breaking to make it nevertheless",
        ),
        (
            409,
            {"message": "exists", "restate_code": "META0004"},
            ExitCode.SETTINGS_UNUSABLE,
            "Restate refuses this change: exists. Add --force to make it nevertheless",
        ),
        (
            500,
            {"message": "[META0003] [META0003] error: refused", "restate_code": "META0003"},
            ExitCode.FAILED,
            "Restate cannot discover the deployment, nothing was changed: error: refused",
        ),
        (
            500,
            {"message": "[META0003] error when calling 'http://a/b': refused", "restate_code": "META0003"},
            ExitCode.FAILED,
            "error when calling 'http://a/b': refused. Does the sidecar run there? --sidecar says where Restate",
        ),
        (
            500,
            {"message": "[META0014] only HTTP1.1, consider --use-http1.1", "restate_code": "META0014"},
            ExitCode.FAILED,
            "consider --use-http1.1. The sidecar speaks HTTP/2 there: does its admin port answer? --sidecar says where",
        ),
        (500, {"message": "out of disk"}, ExitCode.FAILED, "Restate failed (500): out of disk"),
        (502, "<h1>Bad gateway</h1>", ExitCode.FAILED, "Restate failed (502): Bad gateway"),
        (503, "", ExitCode.FAILED, "without a reason"),
        (500, DEEP, ExitCode.FAILED, "Restate failed (500): [[["),
        (
            400,
            {"message": "The request field 'uri' is invalid.", "restate_code": None},
            ExitCode.SETTINGS_UNUSABLE,
            "Restate refuses the registration (400): The request field 'uri' is invalid",
        ),
        (404, "not found", ExitCode.SETTINGS_UNUSABLE, "is not Restate's admin API (status 404)"),
        (302, "", ExitCode.SETTINGS_UNUSABLE, "is not Restate's admin API (status 302)"),
        (200, "hello", ExitCode.SETTINGS_UNUSABLE, "is not Restate's admin API (status 200 without JSON)"),
        (200, DEEP, ExitCode.SETTINGS_UNUSABLE, "is not Restate's admin API (status 200 without JSON)"),
        (200, [1], ExitCode.SETTINGS_UNUSABLE, "is not Restate's admin API (an answer of another shape)"),
    ],
)
async def test_each_refusal_is_a_sentence_with_a_remedy(
    status: int, body: Any, exit_code: ExitCode, words: str
) -> None:
    failure = await failure_of(answering(status, body))
    assert words in str(failure)
    assert failure.exit_code is exit_code


@pytest.mark.asyncio
async def test_restates_ingress_is_not_its_admin_api() -> None:
    said = {"code": 400, "message": "bad path: /deployments", "source": "ingress"}
    async with admin_api(answering(400, said)) as admin:
        with pytest.raises(AdminFailure, match=r"is not Restate's admin API \(status 400\)"):
            await admin.deployments()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is not Restate's admin API (an answer that cannot be read)"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: x\r\n" * 999, "(an answer that cannot be read)"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", "(its answer breaks off): is Restate running?"),
    ],
)
async def test_an_answer_of_another_protocol_and_half_an_answer_are_no_errors_of_python(
    octets: bytes, words: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(octets)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with RestateAdmin(f"http://{host}:{port}", None, 5.0) as admin:
            with pytest.raises(AdminFailure) as caught:
                await admin.services()
    assert words in str(caught.value)


@pytest.mark.asyncio
async def test_a_missing_token_is_reported() -> None:
    assert "requires a token (401)" in str(await failure_of(answering(401, ""), token=None))


@pytest.mark.asyncio
async def test_a_response_that_repeats_secrets_is_shown_without_them() -> None:
    message = {"message": f"bad request: {TOKEN} and Basic_of_s3cret_headers_1"}
    failure = await failure_of(answering(400, message), authorization="Basic_of_s3cret_headers_1 x")
    assert "s3cret" not in str(await failure_of(answering(400, {"message": f"{TOKEN} x=a b!"}), x="a b!"))
    assert str(failure).count("[not shown]") >= 1
    failure = await failure_of(answering(400, {"message": "bad hunter2pass of x"}), **{"x-api-key": "hunter2pass"})
    assert "bad [not shown] of x" in str(failure)


@pytest.mark.asyncio
async def test_a_failed_discovery_by_authority_names_the_variable_that_restate_needs() -> None:
    body = {"message": "failed to lookup address information", "restate_code": "META0003"}
    async with admin_api(answering(500, body)) as admin:
        with pytest.raises(AdminFailure) as caught:
            await admin.register(
                "http://svc.run.app/", {}, force=False, breaking=False, http1=False, dry_run=True, proxy="http://s:9081"
            )
    assert str(caught.value) == (
        "Restate cannot discover the deployment, nothing was changed: failed to lookup address information. It reaches "
        "this URL only if the Restate server has the variable RESTATE_HTTP_PROXY=http://s:9081"
    )


@pytest.mark.asyncio
async def test_a_redirect_is_not_followed_with_the_token() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"location": "/elsewhere"})

    await failure_of(answer)
    assert asked == ["/deployments"]


@pytest.mark.asyncio
async def test_a_refused_connection_is_reported_with_the_flag() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        async with RestateAdmin(url, None, 5.0) as admin:
            with pytest.raises(AdminFailure) as caught:
                await admin.deployments()
    assert f"cannot be reached at {url} (Connection refused): is Restate running?" in str(caught.value)
    assert "--restate-admin" in str(caught.value)
    assert caught.value.exit_code is ExitCode.FAILED


@pytest.mark.asyncio
async def test_a_missing_response_is_reported_at_the_deadline() -> None:
    forever = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    async with admin_api(answer, timeout_seconds=0.1) as admin:
        with pytest.raises(AdminFailure, match=r"did not answer within 0\.1 s"):
            await admin.services()
        forever.set()


@pytest.mark.asyncio
async def test_the_newest_revisions_are_read_by_name() -> None:
    service = {"name": "Greeter", "ty": "Service", "revision": 2, "deployment_id": "dp_1", "handlers": []}
    async with admin_api(answering(200, {"services": [service]})) as admin:
        assert (await admin.services())["Greeter"].revision == 2

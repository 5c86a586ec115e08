from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.emulator import CloudRun, Google, RequestRecord, Verdict, read_claims
from proxy.emulator.cloud_run import MAX_RECORDED_STREAMS
from proxy.emulator.jwts import Key, TokenRefused
from proxy.emulator.model import unique_id
from tests.support.emulated import AUDIENCE, CALLER, TARGET, Clock
from tests.support.front_end import ADDED, Application, bearer, call, claims

Fields = list[tuple[bytes, bytes]]
SERVERLESS_AUTHORIZATION, AUTHORIZATION = b"x-serverless-authorization", b"authorization"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.ACCEPTED),
        ({"iss": "accounts.google.com"}, Verdict.ACCEPTED),
        ({"aud": "custom"}, Verdict.ACCEPTED),
        ({"email": "whatever@example.com"}, Verdict.ACCEPTED),
        ({"exp": 1_800_000_000 - 4}, Verdict.ACCEPTED),
        ({"exp": 1_800_000_000 - 5}, Verdict.EXPIRED),
        ({"iat": 1_800_000_000 + 5}, Verdict.ACCEPTED),
        ({"iat": 1_800_000_000 + 6}, Verdict.TOO_EARLY),
        ({"iss": "https://accounts.example.com"}, Verdict.ISSUER),
        ({"iss": None}, Verdict.ISSUER),
        ({"aud": AUDIENCE + "/"}, Verdict.AUDIENCE),
        ({"aud": AUDIENCE + ":443"}, Verdict.AUDIENCE),
        ({"aud": AUDIENCE.upper()}, Verdict.AUDIENCE),
        ({"aud": [AUDIENCE]}, Verdict.AUDIENCE),
        ({"aud": None}, Verdict.AUDIENCE),
        ({"sub": None}, Verdict.MALFORMED),
        ({"exp": None}, Verdict.MALFORMED),
        ({"iat": "now"}, Verdict.MALFORMED),
        ({"sub": unique_id(TARGET)}, Verdict.NOT_INVOKER),
        ({"sub": unique_id(TARGET), "email": CALLER}, Verdict.NOT_INVOKER),
    ],
)
async def test_each_claim_is_checked(
    cloud_run: CloudRun,
    application: Application,
    google: Google,
    clock: Clock,
    changes: dict[str, object],
    verdict: Verdict,
) -> None:
    sent = await call(cloud_run, [(SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock, **changes))))])
    assert cloud_run.streams == [RequestRecord("POST", "/invoke", verdict)]
    assert sent[0]["status"] == (verdict.status or 204)
    assert len(application.scopes) == (verdict is Verdict.ACCEPTED)


def _forge(token: str) -> str:
    head, claims, signature = token.split(".")
    return f"{head}.{claims}.{signature[:-8]}AAAAAAAA"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "verdict"),
    [
        (lambda token: [], Verdict.NO_TOKEN),
        (lambda token: [token, token], Verdict.MALFORMED),
        (lambda token: [f"{token}, {token}"], Verdict.MALFORMED),
        (lambda token: [token.removeprefix("Bearer ")], Verdict.MALFORMED),
        (lambda token: [token.replace("Bearer", "Basic")], Verdict.MALFORMED),
        (lambda token: [""], Verdict.MALFORMED),
        (lambda token: ["Bearer "], Verdict.MALFORMED),
        (lambda token: [token.replace(" ", "  ")], Verdict.MALFORMED),
        (lambda token: [token + " "], Verdict.MALFORMED),
        (lambda token: ["Bearer ya29.an-access-token"], Verdict.MALFORMED),
        (lambda token: [token.rpartition(".")[0]], Verdict.MALFORMED),
        (lambda token: [token.rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"], Verdict.SIGNATURE),
        (lambda token: [_forge(token)], Verdict.SIGNATURE),
        (lambda token: [token.replace("Bearer", "bearer")], Verdict.ACCEPTED),
    ],
)
@pytest.mark.parametrize("name", [SERVERLESS_AUTHORIZATION, AUTHORIZATION])
async def test_the_syntax_of_the_field_is_checked(
    cloud_run: CloudRun,
    google: Google,
    clock: Clock,
    name: bytes,
    spoil: Callable[[str], list[str]],
    verdict: Verdict,
) -> None:
    values = spoil("Bearer " + google.sign(claims(clock)))
    await call(cloud_run, [(name, value.encode()) for value in values])
    assert [record.verdict for record in cloud_run.streams] == [verdict]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("hosts", "verdict"),
    [
        ([b"greeter-abc.a.run.app"], Verdict.ACCEPTED),
        ([b"Greeter-ABC.a.run.app:443"], Verdict.ACCEPTED),
        ([b"127.0.0.1:8443"], Verdict.ACCEPTED),
        ([b"[::1]:8443"], Verdict.ACCEPTED),
        ([b"127.0.0.1:8443", b"127.0.0.1:8443"], Verdict.ACCEPTED),
        ([b"evil.example"], Verdict.UNKNOWN_HOST),
        ([b"greeter-abc.a.run.app.evil.example"], Verdict.UNKNOWN_HOST),
        ([b"greeter-abc.a.run.app", b"evil.example"], Verdict.UNKNOWN_HOST),
        ([b""], Verdict.UNKNOWN_HOST),
        ([b"[::1"], Verdict.UNKNOWN_HOST),
        ([], Verdict.UNKNOWN_HOST),
    ],
)
async def test_the_host_must_be_one_of_the_services(
    cloud_run: CloudRun, google: Google, clock: Clock, hosts: list[bytes], verdict: Verdict
) -> None:
    cloud_run.hosts = frozenset({"127.0.0.1", "::1"})
    token = (SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock))))
    sent = await call(cloud_run, [token, *((b"host", host) for host in hosts)])
    assert cloud_run.streams == [RequestRecord("POST", "/invoke", verdict)]
    assert sent[0]["status"] == (204 if verdict is Verdict.ACCEPTED else 404)


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/_ah/warmup", "/_ah/", "/healthz", "/eventlog"])
async def test_a_reserved_path_never_reaches_the_container(
    cloud_run: CloudRun, google: Google, clock: Clock, path: str
) -> None:
    token = (SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock))))
    assert (await call(cloud_run, [token], path=path))[0]["status"] == 404
    for near in ("/healthz/x", "/x/healthz", "/_ahead", "/eventlogs"):
        assert (await call(cloud_run, [token], path=near))[0]["status"] == 204


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
async def test_a_refused_method_never_reaches_the_container(
    cloud_run: CloudRun, google: Google, clock: Clock, method: str
) -> None:
    token = (SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock))))
    assert (await call(cloud_run, [token], method=method))[0]["status"] == 405
    assert cloud_run.verdicts == {Verdict.METHOD: 1}


@pytest.mark.asyncio
async def test_the_total_size_of_fields_is_limited(cloud_run: CloudRun, google: Google, clock: Clock) -> None:
    token = (SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock))))
    used = sum(len(part) for part in token) + 32 + len(b":path/invoke") + 32
    padding = 16_384 - used - len(b"x-a") - 32
    assert (await call(cloud_run, [token, (b"x-a", b"a" * padding)]))[0]["status"] == 204
    assert (await call(cloud_run, [token, (b"x-a", b"a" * (padding + 1))]))[0]["status"] == 431
    cloud_run.field_section_octets = 65_536
    assert (await call(cloud_run, [token, (b"x-a", b"a" * 40_000)]))[0]["status"] == 204


@pytest.mark.asyncio
async def test_a_foreign_key_is_refused(cloud_run: CloudRun, clock: Clock) -> None:
    await call(cloud_run, [(SERVERLESS_AUTHORIZATION, bearer(Key().sign(claims(clock))))])
    assert cloud_run.streams[0].verdict is Verdict.UNKNOWN_KEY


@pytest.mark.asyncio
async def test_a_401_names_the_error_and_a_403_does_not(cloud_run: CloudRun) -> None:
    for value, status in ((b"Bearer junk", 401), (None, 403)):
        start, body = await call(cloud_run, [] if value is None else [(SERVERLESS_AUTHORIZATION, value)])
        fields = dict(start["headers"])
        assert start["status"] == status
        assert fields.get(b"www-authenticate", b"").startswith(b'Bearer error="invalid_token"') == (status == 401)
        assert fields[b"content-type"] == b"text/html; charset=UTF-8"
        assert fields[b"content-length"] == str(len(body["body"])).encode()


@pytest.mark.asyncio
async def test_only_the_serverless_field_is_checked_and_the_other_is_unchanged(
    cloud_run: CloudRun, application: Application, google: Google, clock: Clock
) -> None:
    token = google.sign(claims(clock))
    others: Fields = [
        (b"host", b"x"),
        (AUTHORIZATION, b"Bearer the caller's own"),
        (AUTHORIZATION, b"Basic Zm9v"),
        (b"a", b"1"),
    ]
    await call(cloud_run, [*others, (SERVERLESS_AUTHORIZATION, bearer(token)), (b"a", b"2")])
    unsigned = bearer(token.rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE")
    headers = application.scopes[0]["headers"]
    assert headers[: len(others) + 2] == [*others, (SERVERLESS_AUTHORIZATION, unsigned), (b"a", b"2")]
    assert [name for name, _ in headers[len(others) + 2 :]] == ADDED


@pytest.mark.asyncio
async def test_a_valid_authorization_does_not_replace_an_invalid_serverless_field(
    cloud_run: CloudRun, google: Google, clock: Clock
) -> None:
    good = bearer(google.sign(claims(clock)))
    await call(cloud_run, [(AUTHORIZATION, good), (SERVERLESS_AUTHORIZATION, b"")])
    assert cloud_run.streams[0].verdict is Verdict.MALFORMED


@pytest.mark.asyncio
async def test_authorization_loses_its_signature_if_it_was_checked(
    cloud_run: CloudRun, application: Application, google: Google, clock: Clock
) -> None:
    token = google.sign(claims(clock))
    await call(cloud_run, [(AUTHORIZATION, bearer(token))])
    name, value = application.scopes[0]["headers"][0]
    assert name == AUTHORIZATION
    assert value.endswith(b".SIGNATURE_REMOVED_BY_GOOGLE")
    assert token.rpartition(".")[2].encode() not in value


@pytest.mark.asyncio
async def test_the_application_can_read_the_claims(
    cloud_run: CloudRun, application: Application, google: Google, clock: Clock
) -> None:
    await call(cloud_run, [(SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock))))])
    assert read_claims(application.scopes[0]["headers"][0][1]) == claims(clock)
    with pytest.raises(TokenRefused):
        read_claims(b"Basic Zm9v")


@pytest.mark.asyncio
async def test_without_a_url_no_audience_is_valid(application: Application, google: Google, clock: Clock) -> None:
    cloud_run = CloudRun(application, google, invokers=[CALLER])
    for audience in (None, "None", ""):
        await call(cloud_run, [(SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock, aud=audience))))])
    assert cloud_run.verdicts == {Verdict.AUDIENCE: 3}


@pytest.mark.asyncio
async def test_invokers_may_change_between_requests(cloud_run: CloudRun, google: Google, clock: Clock) -> None:
    fields = [(SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock))))]
    cloud_run.invokers.discard(CALLER)
    await call(cloud_run, fields)
    cloud_run.invokers.add(CALLER)
    await call(cloud_run, fields)
    assert [record.verdict for record in cloud_run.streams] == [Verdict.NOT_INVOKER, Verdict.ACCEPTED]


@pytest.mark.asyncio
async def test_the_lifespan_passes_through(cloud_run: CloudRun, application: Application) -> None:
    await call(cloud_run, [], kind="lifespan")
    assert application.scopes[0]["type"] == "lifespan"
    assert cloud_run.streams == []


@pytest.mark.asyncio
async def test_a_websocket_is_also_checked(
    cloud_run: CloudRun, application: Application, google: Google, clock: Clock
) -> None:
    assert await call(cloud_run, [], kind="websocket") == [{"type": "websocket.close"}]
    await call(cloud_run, [(SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock))))], kind="websocket")
    assert len(application.scopes) == 1
    assert [record.method for record in cloud_run.streams] == ["WEBSOCKET", "WEBSOCKET"]


@pytest.mark.asyncio
async def test_recorded_requests_are_bounded_and_counts_are_not(cloud_run: CloudRun) -> None:
    cloud_run.streams += [RequestRecord("GET", "/", Verdict.NO_TOKEN)] * (MAX_RECORDED_STREAMS - 1)
    await call(cloud_run, [])
    assert len(cloud_run.streams) == MAX_RECORDED_STREAMS
    await call(cloud_run, [])
    assert len(cloud_run.streams) == MAX_RECORDED_STREAMS // 2 + 1
    assert cloud_run.verdicts[Verdict.NO_TOKEN] == 2

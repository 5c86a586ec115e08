"""Error responses of the upstream: `retry-after`, and the log line with the remedy."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from proxy.routes import Origin, Route
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import Signed, get


@each_bare_engine
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("random_fraction", "seconds"), [(0.0, b"1"), (0.5, b"3"), (0.999, b"5")])
def test_a_429_or_503_without_retry_after_gets_one_that_is_spread(
    make: EngineFactory, status: int, random_fraction: float, seconds: bytes
) -> None:
    with World(make=make, random_fraction=lambda: random_fraction) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, status, fields=[(b"content-type", b"text/plain")])
        service.engine.send_data(far, b"no instance", end_stream=True)
        world.settle()
        assert client.streams[stream].head == [
            (b":status", b"%d" % status, False),
            (b"content-type", b"text/plain", False),
            (b"retry-after", seconds, False),
        ]
        assert client.streams[stream].content == b"no instance"
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("value", [b"0", b"120", b"Fri, 31 Dec 1999 23:59:59 GMT", b"soon"])
def test_a_retry_after_of_the_service_itself_is_left_alone(make: EngineFactory, value: bytes) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, 503, fields=[(b"retry-after", value)], end=True)
        world.settle()
        assert client.streams[stream].head == [(b":status", b"503", False), (b"retry-after", value, False)]


@each_bare_engine
@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 413, 500, 502, 504])
def test_no_other_status_gets_a_retry_after(make: EngineFactory, status: int) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, status, end=True)
        world.settle()
        assert client.streams[stream].head == [(b":status", b"%d" % status, False)]


@each_bare_engine
def test_no_retry_after_is_added_where_the_settings_say_so(make: EngineFactory) -> None:
    with World(make=make, add_retry_after=False) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, 503, end=True)
        world.settle()
        assert client.streams[stream].head == [(b":status", b"503", False)]


# ---- what the upstream answers, and what mends it


IAP = (b"x-goog-iap-generated-response", b"true")
PROTOCOL_ERROR = b"upstream connect error or disconnect/reset before headers. reset reason: protocol error"


@each_bare_engine
@pytest.mark.parametrize(
    ("status", "fields", "content", "code", "words"),
    [
        (401, [(b"www-authenticate", b'Bearer error="invalid_token"')], b"", "audience-refused", "gcp_audience"),
        (401, [], b"", "identity-required", "request identity"),
        (403, [(b"content-type", b"text/html")], b"<h1>Forbidden", "invoker-missing", "roles/run.invoker"),
        (404, [], b"", "not-found", "Check the url of the route"),
        (404, [(b"x-restate-server", b"sdk/1")], b"", "not-found", "register the deployment again"),
        (429, [], b"Rate exceeded.", "no-instance", "--max-instances"),
        (502, [(b"content-type", b"text/plain")], PROTOCOL_ERROR, "http2-not-end-to-end", "--use-http2"),
        (503, [(b"content-type", b"text/plain")], PROTOCOL_ERROR, "http2-not-end-to-end", "--use-http2"),
        (502, [], b"", "service-failed", "logs"),
        (503, [], b"no instance", "no-instance", "--max-instances"),
        (504, [], b"", "timed-out", "timeout"),
        (508, [(ERROR_FIELD, b"loop-detected")], b"", "sidecar-answered", "not to a sidecar"),
        (302, [(b"location", b"https://accounts.google.com/o?x=y")], b"", "iap", "IAP"),
        (401, [IAP], b"Invalid IAP credentials: Unable to parse JWT", "iap", "Proxy-Authorization"),
        (403, [IAP], b"", "iap", "Proxy-Authorization"),
        (
            307,
            [(b"location", b"https://elsewhere.example/?x=y")],
            b"",
            "redirected",
            "Restate does not follow redirects",
        ),
    ],
)
def test_an_error_that_stops_an_invocation_is_logged_with_its_remedy(
    make: EngineFactory, status: int, fields: list[tuple[bytes, bytes]], content: bytes, code: str, words: str
) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        stream = get(world, client, "/svc/invoke/Greeter/greet?key=secret")
        service, far = world.latest("/invoke/Greeter/greet?key=secret")
        service.respond(far, status, fields=fields, end=not content)
        if content:
            service.engine.send_data(far, content, end_stream=True)
        world.settle()
        assert client.streams[stream].content == content
        (line,) = [line for line in log if line["event"] == "upstream answered an error"]
        assert (line["log_level"], line["route"], line["status"], line["code"]) == ("warning", "svc", status, code)
        assert line["reason"]
        assert words in line["remedy"]
        assert "secret" not in str(line)
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize(("status", "codes"), [(403, ["unsigned-refused"]), (502, [])])
def test_an_error_whose_content_decides_nothing_is_logged_at_once_and_others_at_the_end_at_the_latest(
    make: EngineFactory, status: int, codes: list[str]
) -> None:
    with World(make=make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, status)
        world.settle()
        assert [line["code"] for line in log if line["event"] == "upstream answered an error"] == codes
        service.engine.reset(far, ErrorCode.INTERNAL_ERROR)
        world.settle()
        told = [line for line in log if line["event"] == "upstream answered an error"]
        assert [line["code"] for line in told] == (codes or ["service-failed"])
        world.assert_at_rest()


@each_bare_engine
def test_the_log_of_a_403_names_the_account_and_the_command(make: EngineFactory) -> None:
    host = "greeter-123456789012.europe-west1.run.app"
    greeter = Route(name="svc", origin=Origin("https", host, 443))
    with Signed(make, greeter) as world, structlog.testing.capture_logs() as log:
        world.principal = "me@project.iam.gserviceaccount.com"
        client = world.client()
        get(world, client, "/svc/x")
        world.respond("/x", 403)
        (line,) = [line for line in log if line["event"] == "upstream answered an error"]
        assert line["reason"] == "me@project.iam.gserviceaccount.com may not call the service (403)"
        assert line["commands"] == [
            "gcloud run services add-iam-policy-binding greeter --region=europe-west1 "
            "--member=serviceAccount:me@project.iam.gserviceaccount.com --role=roles/run.invoker "
            "--project=$(gcloud projects describe 123456789012 --format='value(projectId)')"
        ]

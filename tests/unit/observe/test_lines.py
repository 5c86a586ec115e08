from __future__ import annotations

import io
import json
import logging
import re
import sys
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamConnectFailed
from proxy.observe.access_log import AccessLog
from proxy.observe.lines import configure_logging, redact
from proxy.observe.warnings import Warnings
from proxy.quoting import REDACTED
from proxy.routes import Origin, Route
from tests.support.observed import Observed

JWT = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJodHRwczovL3N2YyJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_json_line_has_time_severity_and_message_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    structlog.get_logger("relay").warning("request failed", route="greeter", status=503)
    (line,) = lines(capsys)
    assert list(line)[:3] == ["time", "severity", "message"]
    assert line["severity"] == "WARNING"
    assert line["message"] == "request failed"
    assert (line["room"], line["route"], line["status"]) == ("relay", "greeter", 503)
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


def test_a_field_of_the_line_cannot_take_the_place_of_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    structlog.get_logger("x").info("said", message="other", severity="other", time="other")
    (line,) = lines(capsys)
    assert (line["message"], line["severity"]) == ("said", "INFO")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", "debug info warning error"),
        ("info", "info warning error"),
        ("warning", "warning error"),
        ("error", "error"),
    ],
)
def test_lines_below_the_level_are_not_written(level: Any, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("x")
    configure_logging(level, "json")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    assert [line["message"] for line in lines(capsys)] == written.split()


def test_a_logger_made_before_the_configuration_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("early")
    configure_logging("error", "json")
    log.info("one")
    configure_logging("info", "json")
    log.info("two")
    assert [line["message"] for line in lines(capsys)] == ["two"]


def test_the_format_auto_is_console_on_a_terminal_and_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, is_json in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("info", "auto")
        structlog.get_logger("x").info("hello")
        assert stream.getvalue().startswith("{") is is_json
        assert ("\x1b[" in stream.getvalue()) is stream.isatty()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_gets_no_colours_where_the_environment_asks_for_none(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv(name, value)
    configure_logging("info", "auto")
    structlog.get_logger("x").info("hello", route="a")
    assert "hello" in stream.getvalue()
    assert "\x1b[" not in stream.getvalue()


TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
INVOCATION = b"inv_1gdJBtdVEcM942bjcDmb1c1khoaJe11Hbz"


def exchange_line(capsys: pytest.CaptureFixture[str], *fields: tuple[bytes, bytes], code: str = "") -> dict[str, Any]:
    configure_logging("info", "json")
    observer = AccessLog().route(Route(name="greeter", origin=Origin("https", "svc.run.app", 443)))
    exchange = Observed(
        path=b"/greeter/invoke?key=secret",
        fields=[(name, value, False) for name, value in fields],
        request_octets=7,
        response_octets=8,
        failure_code=code,
    )
    assert observer is not None
    observer.ended(exchange, 503 if code else 200, 0.25)
    (line,) = lines(capsys)
    return line


def test_an_exchange_is_written_as_cloud_logging_shows_requests(capsys: pytest.CaptureFixture[str]) -> None:
    line = exchange_line(capsys)
    assert line["httpRequest"] == {
        "requestMethod": "POST",
        "requestUrl": "/greeter/invoke",
        "status": 200,
        "latency": "0.2500s",
        "requestSize": "7",
        "responseSize": "8",
    }
    assert (line["route"], line["code"], line["remedy"]) == ("greeter", None, None)
    assert not {"method", "path", "status", "milliseconds"} & set(line)
    assert not [name for name in line if name.startswith("logging.googleapis.com/")]


def test_a_failed_exchange_has_its_code_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    line = exchange_line(capsys, code="upstream-connect-failed")
    assert line["code"] == "upstream-connect-failed"
    assert (
        line["remedy"] == "Check the url of the route, DNS and egress rules; upstream_proxy, if the sentence names it."
    )


@pytest.mark.parametrize(
    ("project", "trace"),
    [
        ("", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("my-project", "projects/my-project/traces/4bf92f3577b34da6a3ce929d0e0e4736"),
    ],
)
def test_a_line_is_tied_to_its_trace_and_its_invocation(
    project: str, trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", project)
    line = exchange_line(capsys, (b"traceparent", TRACEPARENT), (b"x-restate-invocation-id", INVOCATION))
    assert line["logging.googleapis.com/trace"] == trace
    assert line["logging.googleapis.com/spanId"] == "00f067aa0ba902b7"
    assert line["logging.googleapis.com/trace_sampled"] is True
    assert line["invocation_id"] == INVOCATION.decode()


def test_a_later_version_of_a_trace_may_have_more_behind_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    line = exchange_line(capsys, (b"traceparent", b"01" + TRACEPARENT.removeprefix(b"00") + b"-more"))
    assert line["logging.googleapis.com/spanId"] == "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"),
        (b"traceparent", b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        (b"traceparent", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01"),
        (b"traceparent", TRACEPARENT + b"-more"),
        (b"traceparent", JWT.encode()),
        (b"x-restate-invocation-id", JWT.encode()),
        (b"x-restate-invocation-id", b"inv_" + b"a" * 65),
    ],
)
def test_an_invalid_trace_or_invocation_id_is_not_logged(
    name: bytes, value: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    line = exchange_line(capsys, (name, value))
    assert value.decode() not in json.dumps(line)
    assert "invocation_id" not in line
    assert not [name for name in line if name.startswith("logging.googleapis.com/")]


def test_two_traces_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    other = TRACEPARENT.replace(b"4bf9", b"aaaa")
    line = exchange_line(capsys, (b"traceparent", TRACEPARENT), (b"traceparent", other))
    assert not [name for name in line if name.startswith("logging.googleapis.com/")]


def test_a_warning_has_the_remedy_and_the_invocation(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    observer = Warnings().route(Route(name="greeter", origin=Origin("https", "svc.run.app", 443)))
    exchange = Observed(status=503, fields=[(b"x-restate-invocation-id", INVOCATION, False)])
    observer.local_reply(exchange, UpstreamConnectFailed("refused"))
    (line,) = lines(capsys)
    assert (line["route"], line["code"], line["status"]) == ("greeter", "upstream-connect-failed", 503)
    assert (
        line["remedy"] == "Check the url of the route, DNS and egress rules; upstream_proxy, if the sentence names it."
    )
    assert line["invocation_id"] == INVOCATION.decode()


def test_console_has_no_colours_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    structlog.get_logger("x").info("hello", route="a")
    text = capsys.readouterr().err
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+Z \[info +\] hello +room=x route=a$", text.strip())


@pytest.mark.parametrize("mark", ["\x1b", "\x07", "\x7f", "\x9b", "\x9d", "\r", "\u202e"])
def test_nothing_in_a_line_is_obeyed_by_a_terminal(mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    hostile = f"/a{mark}31mb"
    structlog.get_logger("access").info("exchange", path=hostile, both=f"{hostile} c", several=[hostile])
    logging.getLogger("hypercorn").warning("refused %s\n%s", hostile, hostile)
    try:
        raise ValueError(hostile)
    except ValueError as exc:
        structlog.get_logger("x").error("oops", exc_info=exc)
    exchange, refused, _, *traceback = capsys.readouterr().err.removesuffix("\n").split("\n")
    for line in (exchange, refused, *traceback):
        assert line.isprintable(), line
    assert "path=/a\ufffd31mb " in exchange
    assert "refused /a\ufffd31mb\ufffd/a\ufffd31mb" in refused
    assert traceback[-1] == "ValueError: /a\ufffd31mb"


def test_a_closed_stderr_affects_no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    configure_logging("info", "json")
    structlog.get_logger("x").info("hello")


def test_warnings_of_libraries_become_lines_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "json")
    configure_logging("debug", "json")
    library = logging.getLogger("some.library")
    library.debug("Bearer %s", "secret")
    library.info("request headers: %s", "secret")
    library.warning("token %s is bad", JWT)
    library.log(35, "odd level")
    assert [(line["severity"], line["message"], line["library"]) for line in lines(capsys)] == [
        ("WARNING", f"token {REDACTED} is bad", "some.library"),
        ("WARNING", "odd level", "some.library"),
    ]


def test_a_traceback_of_a_library_is_logged_without_its_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    try:
        raise ValueError(f"cannot decode {JWT}")
    except ValueError:
        logging.getLogger("google.auth").exception("failed")
    (line,) = lines(capsys)
    assert line["exception"].endswith(f"ValueError: cannot decode {REDACTED}")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_never_shows_local_variables(log_format: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", log_format)
    held = "opaque-secret-" + "value"
    try:
        raise ValueError(len(held))
    except ValueError:
        structlog.get_logger("x").exception("failed")
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "opaque-secret-value" not in text


# ---- redaction


def redacted(**event: Any) -> dict[str, Any]:
    return dict(redact(None, "info", event))


@pytest.mark.parametrize(
    "key",
    ["authorization", "Authorization", "x_serverless_authorization", "X-Serverless-Authorization",
     "token", "id_token", "access-token", "refresh_token", "jwt", "assertion", "client_assertion", "private_key",
     "client_secret", "password", "cookie", "api_key", "proxy-authorization", "x-functions-key", "credential",
     "signature"],
)  # fmt: skip
def test_the_value_of_a_secret_key_is_dropped_at_any_depth(key: str) -> None:
    for value in ("opaque", b"opaque", ["opaque"], {"a": "opaque"}, 7):
        assert redacted(**{key: value})[key] == REDACTED
        assert redacted(fields={key: value})["fields"] == {key: REDACTED}
        assert redacted(fields=[{key: value}])["fields"] == [{key: REDACTED}]


@pytest.mark.parametrize(
    ("key", "value"),
    [("audience", "https://svc"), ("principal", "a@b.iam.gserviceaccount.com"), ("expires_at", 1.5),
     ("token_lifetime", 3), ("tokens", 2), ("code", "token-timeout"), ("cached", True), ("nothing", None),
     ("keyless", "x")],
)  # fmt: skip
def test_other_values_are_logged_unchanged(key: str, value: Any) -> None:
    assert redacted(**{key: value}) == {key: value}


class Holder:
    def __repr__(self) -> str:
        return f"Holder({JWT})"


@pytest.mark.parametrize(
    "value",
    [
        JWT,
        f"Bearer {JWT}",
        f"bearer   {JWT.replace('.', '~')}",
        f"header X-Serverless-Authorization: Bearer {JWT}, and more",
        f"BEARER%20{JWT.replace('.', '~')}",
        JWT.encode(),
        f"b'{JWT}'",
        {"nested": [("x", JWT)]},
        {JWT},
        Holder(),
        ValueError(JWT),
        JWT.rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE",
        "ya29." + "c2lnbmF0dXJlLXNpZ25hdHVyZQ",
        "-----BEGIN PRIVATE KEY-----\nc2lnbmF0dXJlLXNpZ25hdHVyZQ\n-----END PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nc2lnbmF0dXJlLXNpZ25hdHVyZQ",
    ],
)
def test_text_that_looks_like_a_credential_is_masked_anywhere(value: Any) -> None:
    for event in (redacted(event=value), redacted(anything=value), redacted(exception=[value])):
        text = str(event)
        assert REDACTED in text
        assert "c2lnbmF0dXJlLXNpZ25hdHVyZQ" not in text
        assert "eyJhdWQ" not in text


def test_the_challenge_of_cloud_run_is_not_masked() -> None:
    challenge = 'Bearer error="invalid_token" error_description="The access token could not be verified"'
    assert redacted(www_authenticate=challenge)["www_authenticate"] == challenge


@pytest.mark.parametrize(
    "text",
    ["https://greeter-123456789012.europe-west1.run.app/eyewitness.api.internal/x", "restate.dev/1.7.12", "a.b.c",
     "torch bearer", "eyJ.x.y", "roles/iam.serviceAccountOpenIdTokenCreator"],
)  # fmt: skip
def test_ordinary_text_is_not_masked(text: str) -> None:
    assert redacted(event=text) == {"event": text}


BASE64URL = st.from_regex(r"[A-Za-z0-9_-]{20,60}", fullmatch=True)


@given(st.text(max_size=20), BASE64URL, BASE64URL, st.text(max_size=20))
def test_a_bearer_value_is_masked_in_any_surroundings(before: str, one: str, two: str, after: str) -> None:
    assert one not in str(redacted(event=f"{before} Bearer {one}.{two} {after}"))
    assert two not in str(redacted(event=f"{before} Bearer {one}.{two} {after}"))

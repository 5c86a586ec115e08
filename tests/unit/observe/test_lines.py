from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.lines import configure_logging, redact
from proxy.quoting import REDACTED

JWT = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJodHRwczovL3N2YyJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers
    structlog.reset_defaults()


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


def test_auto_is_json_where_nobody_looks_and_console_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, is_json in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("info", "auto")
        structlog.get_logger("x").info("hello")
        assert stream.getvalue().startswith("{") is is_json
        assert ("\x1b[" in stream.getvalue()) is stream.isatty()


def test_console_has_no_colours_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    structlog.get_logger("x").info("hello", route="a")
    text = capsys.readouterr().err
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+Z \[info +\] hello +room=x route=a$", text.strip())


def test_a_reader_of_stderr_that_went_away_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    configure_logging("info", "json")
    structlog.get_logger("x").info("hello")


def test_libraries_become_lines_from_warning_on_whatever_the_level(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_traceback_of_a_library_is_kept_but_for_its_secrets(capsys: pytest.CaptureFixture[str]) -> None:
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
     "client_secret", "password", "cookie", "api_key", "proxy-authorization"],
)  # fmt: skip
def test_the_value_of_a_telling_key_is_dropped_however_deep(key: str) -> None:
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
def test_what_is_no_secret_is_left_as_it_is(key: str, value: Any) -> None:
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
def test_what_looks_like_a_credential_is_masked_wherever_it_stands(value: Any) -> None:
    for event in (redacted(event=value), redacted(anything=value), redacted(exception=[value])):
        text = str(event)
        assert REDACTED in text
        assert "c2lnbmF0dXJlLXNpZ25hdHVyZQ" not in text
        assert "eyJhdWQ" not in text


def test_the_challenge_of_cloud_run_can_still_be_read() -> None:
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
def test_a_bearer_value_never_survives_its_surroundings(before: str, one: str, two: str, after: str) -> None:
    assert one not in str(redacted(event=f"{before} Bearer {one}.{two} {after}"))
    assert two not in str(redacted(event=f"{before} Bearer {one}.{two} {after}"))

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli.commands import commands
from proxy.cli.screen import terminal_style
from proxy.settings.layers import PREFIX
from tests.support.pasted import PASTED
from tests.unit.cli.conftest import NO_CREDENTIALS


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, but does not listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(
        commands, ["check", *arguments], env={**NO_CREDENTIALS, **(env or {})}, terminal_width=100
    )


class Terminal(io.TextIOWrapper):
    """A stream with this encoding that claims to be a terminal."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True


def test_a_failure_is_in_the_table_and_in_the_exit_code(closed_port: int) -> None:
    told = run("--route", f"a=https://127.0.0.1:{closed_port}")
    assert (told.exit_code, told.stderr) == (1, "")
    assert told.stdout.startswith(f"/a  https://127.0.0.1:{closed_port}\n  ✘ credentials  no Google credentials: ")
    assert "  ✘ tcp          127.0.0.1 port" in told.stdout
    assert told.stdout.endswith("\n1 route: 1 failing\n")


def test_json_is_one_document_on_stdout(closed_port: int) -> None:
    told = run("--json", "--route", f"a=https://127.0.0.1:{closed_port}", "--upstream", "https://127.0.0.1:1")
    assert (told.exit_code, told.stderr) == (1, "")
    document = json.loads(told.stdout)
    assert (document["version"], document["outcome"]) == (1, "failed")
    assert [route["route"] for route in document["routes"]] == ["a", ""]


def test_variables_are_settings_as_for_serve(closed_port: int) -> None:
    url = f"https://127.0.0.1:{closed_port}"
    told = run(env={f"{PREFIX}ROUTE": f"x={url}", f"{PREFIX}LISTEN": "127.0.0.1:0"})
    assert told.stdout.startswith(f"/x  {url}\n")


def test_unusable_settings_and_unknown_routes_exit_with_2() -> None:
    told = run("--route", "a=ftp://x", "--mint-timeout", "soon")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith("cloudrun-sidecar: 2 problems with the settings\n")
    assert run("b", "--upstream", "https://svc.run.app").exit_code == 2
    engine = run("--upstream", "https://svc.run.app", "--http2-engine", "nghttp2")
    if engine.exit_code == 2:  # where it is not compiled
        assert engine.stderr.startswith("cloudrun-sidecar: the HTTP/2 engine nghttp2 cannot be loaded")


def test_a_route_is_checked_where_no_address_has_a_port(closed_port: int, tmp_path: Path) -> None:
    route = ("--route", f"a=https://127.0.0.1:{closed_port}", "--listen", f"unix:{tmp_path}/s.sock")
    assert run("a", *route).stdout.startswith(f"/a  https://127.0.0.1:{closed_port}\n")
    told = run("a", *route, "--restate-admin", "http://127.0.0.1:9070")
    assert (told.exit_code, "--sidecar says where Restate reaches the sidecar" in told.stderr) == (2, True)


def test_restate_that_cannot_be_asked_is_not_said_to_be_named_by_variable(closed_port: int) -> None:
    told = run("--deployments-hosts", "svc.example.com", "--restate-admin", f"http://127.0.0.1:{closed_port}")
    assert told.exit_code == 1
    text = " ".join(told.stdout.split())
    assert "is Restate running? --restate-admin says where it is" in text


def test_what_restate_calls_its_deployments_is_shown_as_printable_text_without_secrets() -> None:
    deployment = {
        "id": "dp_1\x1b[31m",
        "uri": "http://127.0.0.1:9081/x",
        "services": [{"name": PASTED["a JWT"], "revision": 1}],
    }
    body = json.dumps({"deployments": [deployment]}).encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=answer)
        thread.start()
        admin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        told = run("--deployments-hosts", "svc.example.com", "--restate-admin", admin)
        thread.join()
    assert "\x1b" not in told.stdout
    assert "dp_1 [31m  http://127.0.0.1:9081/x ([not shown])" in told.stdout


@pytest.mark.parametrize("flag", ["--gcp-delegate", "--gcp-delegates"])
def test_the_words_of_register_are_taken_for_a_host(flag: str) -> None:
    told = run("svc.example.com", "--deployments-hosts", "svc.example.com", flag, "a@p.iam.gserviceaccount.com")
    assert (told.exit_code, told.stdout) == (2, "")
    assert "delegates lead to an impersonated account" in told.stderr


def test_headers_belong_to_a_deployment() -> None:
    told = run("--upstream", "https://svc.run.app", "--extra-header", "x-a=b")
    assert (told.exit_code, "--extra-header belongs to a deployment" in told.stderr) == (2, True)


def test_help_explains_the_exit_codes() -> None:
    text = " ".join(run("--help").stdout.split())
    for words in ("Exit code: 0 all is well", "1 something fails", "2 the settings", "3 with --strict", "--json"):
        assert words in text
    assert "--drain-timeout" not in text


@pytest.mark.parametrize(
    ("encoding", "variables", "colour", "ascii_only"),
    [
        ("utf-8", {}, True, False),
        ("utf-8", {"NO_COLOR": "1"}, False, False),
        ("utf-8", {"TERM": "dumb"}, False, False),
        ("ascii", {}, True, True),
        ("latin-1", {}, True, True),
    ],
)
def test_colours_and_symbols_depend_on_the_terminal(
    encoding: str, variables: dict[str, str], colour: bool, ascii_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    style = terminal_style(Terminal(encoding))
    assert (style.colour, style.ascii_only) == (colour, ascii_only)


def test_a_pipe_gets_no_colour_and_a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    style = terminal_style(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert (style.colour, style.columns) == (False, 100)

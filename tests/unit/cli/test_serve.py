from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli.commands import commands
from proxy.settings.groups import GROUPS
from proxy.settings.layers import flag_name
from proxy.settings.loading import load
from proxy.settings.model import RouteSettings, Settings
from proxy.settings.plain import PlainSettings

URL = "https://svc.run.app"

Run = Callable[..., Result]


@pytest.fixture
def sent() -> list[PlainSettings]:
    """The settings that would be sent to the process that serves."""
    return []


@pytest.fixture
def run(sent: list[PlainSettings]) -> Run:
    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(commands, ["serve", *arguments], env=env, terminal_width=100, obj=sent.append)

    return run


def test_it_sends_the_settings_that_result(run: Run, sent: list[PlainSettings]) -> None:
    told = run("--route", f"a={URL}", "--route", f"b={URL}/b", "--workers", "2", env={"CLOUDRUN_SIDECAR_ADMIN": "off"})
    assert told.exit_code == 0
    assert sent == [
        Settings(
            routes={"a": RouteSettings(url=URL), "b": RouteSettings(url=f"{URL}/b")}, workers=2, admin="off"
        ).plain()
    ]


def test_every_flag_reaches_its_setting(run: Run, sent: list[PlainSettings]) -> None:
    account = "invoker@project.iam.gserviceaccount.com"
    flags = (
        f"--upstream {URL} --gcp-id-token --gcp-impersonate-service-account {account} --gcp-audience aud "
        f"--gcp-delegates {account} --gcp-delegates {account} --allow-http "
        "--listen 0.0.0.0:1 --listen [::1]:2 --unsafe-listen --admin off --workers 3 --drain-timeout 4.5 "
        "--connect-timeout 5.5 --mint-timeout 6.5 --stream-wait-timeout 7.5 --max-upstream-connections 8 "
        "--ping-interval 19 --ping-timeout 10 --upstream-idle-timeout 11 --no-add-retry-after --http2-engine h2 "
        "--max-concurrent-streams 212 --stream-window 131072 --queued-octets 1048577 --replay-octets 13 "
        "--max-field-section 20000 --max-interim-heads 9 --cancels-per-minute 500 "
        "--max-connection-age 900 --max-upstream-connection-age 300 "
        "--first-request-timeout 9.5 --head-timeout 8.5 --stall-timeout 7.5 --http1-octets-per-second 7 "
        "--upstream-cancels-per-minute 50 --log-level error --log-format json --access-log"
    )
    run(*flags.split())
    assert sent == [
        Settings(
            routes={
                "": RouteSettings(
                    url=URL, gcp_impersonate_service_account=account, gcp_audience="aud",
                    gcp_delegates=(account, account), allow_http=True,
                )
            },
            listen=("0.0.0.0:1", "[::1]:2"), unsafe_listen=True, admin="off", workers=3, drain_timeout=4.5,
            connect_timeout=5.5, mint_timeout=6.5, stream_wait_timeout=7.5, max_upstream_connections=8,
            ping_interval=19, ping_timeout=10, upstream_idle_timeout=11, add_retry_after=False, http2_engine="h2",
            max_concurrent_streams=212, stream_window=131_072, queued_octets=1_048_577, replay_octets=13,
            max_field_section=20_000, max_interim_heads=9, cancels_per_minute=500,
            first_request_timeout=9.5, head_timeout=8.5, stall_timeout=7.5, http1_octets_per_second=7,
            upstream_cancels_per_minute=50, log_level="error", log_format="json", access_log=True,
            max_connection_age=900, max_upstream_connection_age=300,
        ).plain()
    ]  # fmt: skip


def test_a_no_flag_overrides_a_variable(run: Run, sent: list[PlainSettings]) -> None:
    run("--upstream", URL, "--no-access-log", "--no-gcp-id-token", env={"CLOUDRUN_SIDECAR_ACCESS_LOG": "true"})
    assert sent[0].access_log is False
    assert sent[0].routes[0].signed is False


def test_print_config_shows_what_results_and_sends_nothing(run: Run, sent: list[PlainSettings]) -> None:
    Path("my.toml").write_text(f'workers = 2\n[routes.a]\nurl = "{URL}"\n')
    told = run("--config", "my.toml", "--log-level", "debug", "--print-config")
    assert (told.exit_code, told.stderr, sent) == (0, "", [])
    Path("printed.toml").write_text(told.stdout)
    assert load(Path("printed.toml"), {}, {}).settings == load(Path("my.toml"), {}, {"log_level": "debug"}).settings
    assert tomllib.loads(told.stdout)["workers"] == 2
    assert "workers = 2  # my.toml: workers" in told.stdout


def test_all_problems_are_printed_to_stderr_with_exit_code_2(run: Run, sent: list[PlainSettings]) -> None:
    Path("my.toml").write_text('workers = 0\n[routes.a]\nurl = "ftp://x"\n')
    told = run("--config", "my.toml", "--http2-engine", "x", env={"CLOUDRUN_SIDECAR_MINT_TIMEOUT": "soon"})
    assert (told.exit_code, told.stdout, sent) == (2, "", [])
    first, *others = told.stderr.splitlines()
    assert first == "cloudrun-sidecar: 4 problems with the settings"
    assert [line.split(": ")[0] for line in others] == [
        "  my.toml",
        "  environment",
        "  --http2-engine",
        "  my.toml",
    ]
    assert "  my.toml: routes.a.url: 'ftp://x' must begin with https://" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_single_problem_is_counted_in_the_singular(run: Run) -> None:
    told = run()
    assert told.exit_code == 2
    assert told.stderr.startswith("cloudrun-sidecar: 1 problem with the settings\n  settings: there is no route; give ")


def test_an_unknown_flag_is_a_usage_error(run: Run) -> None:
    told = run("--drain", "3", "--upstream", URL)
    assert told.exit_code == 2
    assert "--drain" in told.stderr


def test_help_shows_every_flag_under_its_heading_with_its_default(run: Run) -> None:
    text = run("--help").stdout
    sections = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)
    by_heading = dict(zip(sections[1::2], sections[2::2], strict=True))
    for heading, names in GROUPS.items():
        for name in names:
            assert re.search(rf"^  {flag_name(name)}\b", by_heading[heading], re.MULTILINE)
    for flag in ("--config", "--route", "--upstream"):
        assert f"\n  {flag} " in by_heading["Routes"]
    for name in RouteSettings.model_fields.keys() - {"url"}:
        assert f"\n  {flag_name(name)} " in by_heading["For all routes given by flag"]
    flat = " ".join(text.split())
    for default in ("127.0.0.1:9081", "127.0.0.1:9091", "30", "auto", "1048576 (1 MiB)", "info", "1024"):
        assert f"[default: {default}]" in flat
    assert max(map(len, text.splitlines())) <= 100

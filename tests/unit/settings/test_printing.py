from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from proxy.settings.__main__ import main
from proxy.settings.field_texts import default_text, unit_of
from proxy.settings.groups import GROUPS, TABLES
from proxy.settings.loading import load
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings
from proxy.settings.printing import dump_toml, json_schema, toml_value
from tests.unit.settings.given import ACCOUNT, URL, upstream, write

CONFIG = Path(__file__).parents[3] / "config"
EXAMPLE = CONFIG / "routes.example.toml"
SCHEMA = CONFIG / "routes.schema.json"

MODELS = (Settings, RouteSettings, DeploymentSettings)
FIELDS = [(model, name) for model in MODELS for name in model.model_fields if name not in TABLES]


# ---- the files in config/


def test_the_committed_sample_matches_the_model() -> None:
    assert EXAMPLE.read_text("utf-8") == main("example"), "run: python -m proxy.settings example > config/…"


def test_the_committed_schema_matches_the_model() -> None:
    # As JSON: releases of pydantic differ in how they write a number.
    assert json.loads(SCHEMA.read_text("utf-8")) == json.loads(main("schema")), (
        "run: python -m proxy.settings schema > config/…"
    )


def test_only_these_two_files_are_printed() -> None:
    with pytest.raises(SystemExit, match=r"schema\|example\|table"):
        main("else")


def test_the_module_prints_the_schema_by_default() -> None:
    ran = subprocess.run([sys.executable, "-m", "proxy.settings"], capture_output=True, check=True)
    assert json.loads(ran.stdout) == json_schema()


def test_the_sample_loads_and_changes_no_default() -> None:
    settings = load(EXAMPLE, {}, {}).settings
    assert settings == Settings(routes=settings.routes)
    assert list(settings.routes) == ["greeter"]
    assert settings.routes["greeter"] == RouteSettings(url=settings.routes["greeter"].url)


def test_the_sample_loads_with_every_line_uncommented() -> None:
    for name in ("tls.crt", "tls.key", "clients-ca.pem"):
        write("", name)
    text = re.sub(r"^#(?=\w+ = )", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    document = tomllib.loads(text.replace('upstream_ca = "private-ca.pem"\n', ""))
    assert set(document) == set(Settings.model_fields) - {"upstream_ca"}
    assert set(document["routes"]["greeter"]) == set(RouteSettings.model_fields)
    assert set(document["deployments"]) == set(DeploymentSettings.model_fields)
    assert load(write(text.replace("upstream_ca =", "#upstream_ca =")), {}, {}).settings.workers == 1


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_the_sample_gives_each_setting_with_reason_unit_and_default(model: type[BaseModel], name: str) -> None:
    block = re.search(rf"((?:^# .*\n)+)^#?{name} = (.*)$", EXAMPLE.read_text("utf-8"), re.MULTILINE)
    assert block is not None
    info = model.model_fields[name]
    comment = " ".join(block[1].replace("\n# ", " ").removeprefix("# ").split())
    assert info.description is not None
    assert info.description in comment
    if info.is_required():
        assert comment.endswith("Required.")
        return
    in_toml = isinstance(info.default, str | tuple) and info.default
    assert f"Default: {toml_value(info.default) if in_toml else default_text(info)}." in comment
    if isinstance(info.default, int | float) and not isinstance(info.default, bool):
        assert unit_of(info)
        assert f"Unit: {unit_of(info)}." in comment
    if info.default not in (None, ()):
        shown = tomllib.loads(f"x = {block[2]}")["x"]
        assert (tuple(shown) if isinstance(shown, list) else shown) == info.default


def test_every_setting_has_one_heading() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted([*grouped, *TABLES]) == sorted(Settings.model_fields)


def test_octets_are_also_shown_in_kib_or_mib() -> None:
    assert default_text(Settings.model_fields["stream_window"]) == "1048576 (1 MiB)"
    assert default_text(Settings.model_fields["replay_octets"]) == "65536 (64 KiB)"
    assert default_text(Settings.model_fields["drain_timeout"]) == "30"
    assert default_text(Settings.model_fields["upstream_ca"]) == "not set"


# ---- the schema


def test_the_schema_is_valid_and_accepts_the_sample() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(EXAMPLE.read_text("utf-8")), schema)


@pytest.mark.parametrize(
    "toml",
    [
        "workers = 0", 'workers = "1"',
        "wrokers = 1", "listen = []", 'log_level = "loud"', "max_concurrent_streams = 127",
        "[routes.a]\nurl = 3", "[routes.a]\ngcp_audience = 'x'", "[routes.a]\nurl = 'x'\nurll = 'x'", "routes = []",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_settings_refuse(toml: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(toml), json_schema())


def test_the_schema_has_no_null_because_toml_has_none() -> None:
    assert "null" not in json.dumps(json_schema())
    assert "title" not in json_schema()["properties"]["workers"]


# ---- the effective settings


def test_printed_settings_load_as_the_same_settings() -> None:
    who = {"gcp_impersonate_service_account": ACCOUNT, "gcp_delegates": (ACCOUNT,), "gcp_audience": "x"}
    routes = {
        "": RouteSettings(url=URL),
        "team/orders": RouteSettings(url="http://[::1]:8080/x", gcp_id_token=False),
        "b": RouteSettings.model_validate({"url": URL, **who}),
    }
    settings = Settings(routes=routes, listen=("127.0.0.1:1", "[::1]:2"), drain_timeout=0.25, admin="off")
    assert load(write(dump_toml(settings, {})), {}, {}).settings == settings


def test_printed_settings_have_their_origin_and_the_audience() -> None:
    file = write(f'workers = 2\n[routes.a]\nurl = "{URL}/base"')
    text = dump_toml(*load(file, {"CLOUDRUN_SIDECAR_ADMIN": "off"}, {"log_level": "debug", "upstream": URL})[:2])
    assert "workers = 2  # my.toml: workers\n" in text
    assert 'admin = "off"  # environment: CLOUDRUN_SIDECAR_ADMIN\n' in text
    assert 'log_level = "debug"  # --log-level\n' in text
    assert "drain_timeout = 30  # default\n" in text
    assert "#upstream_ca =  # default\n" in text
    assert "[routes.a]  # my.toml: routes.a\n" in text
    assert '[routes.""]  # --upstream\n' in text
    assert "# the audience is https://svc.run.app\n" in text


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.booleans() | st.floats(allow_nan=False))
def test_a_written_value_is_read_back_by_tomllib(value: Any) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value
    assert tomllib.loads(f"x = {toml_value((value, value))}")["x"] == [value, value]


def test_the_login_of_a_proxy_is_not_printed() -> None:
    settings = upstream(upstream_proxy="http://ada:hunter2@proxy:3128")
    text = dump_toml(settings, {})
    assert '\nupstream_proxy = "http://proxy:3128" ' in text
    assert "hunter2" not in text

"""A secret that is pasted into a setting, in any layer, is not quoted; the error names the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.settings.groups import TABLES
from proxy.settings.layers import SettingsInvalid, environment_name, flag_name
from proxy.settings.loading import DEPLOYMENT_OPTIONS, INLINE_OPTIONS, load
from proxy.settings.model import RouteSettings, Settings
from proxy.settings.printing import dump_toml, toml_value
from tests.support.pasted import PASTED, told_of
from tests.unit.settings.given import URL, write

# An audience, or the name of a route, may be any word. One that has not the form of a credential is taken for what it
# says it is.
AUDIENCES = ("a line of a private key", "a random secret", "a login")
NAMES = ("a random secret",)

SIDECAR = tuple(name for name in Settings.model_fields if name not in TABLES)
GOOD = f'[routes.good]\nurl = "{URL}"\n'


def told(toml: str | None, environment: dict[str, str], **flags: Any) -> str:
    """Return the text that loading these settings prints: the problems, or the effective settings."""
    try:
        settings, places, _ = load(None if toml is None else write(toml), environment, flags)
    except SettingsInvalid as exc:
        return str(exc)
    return dump_toml(settings, places)


@pytest.mark.parametrize(
    ("name", "pasted"),
    [
        pytest.param(name, pasted, id=f"{name}, {what}")
        for name in (*SIDECAR, *INLINE_OPTIONS, *DEPLOYMENT_OPTIONS)
        for what, pasted in PASTED.items()
        if name != "gcp_audience" or what not in AUDIENCES
    ],
)
def test_no_layer_quotes_a_secret_in_a_setting(name: str, pasted: str) -> None:
    in_file, key = f"{name} = {toml_value(pasted)}\n{GOOD}", name
    if name in INLINE_OPTIONS:
        in_file, key = f"{GOOD}{name} = {toml_value(pasted)}\n", f"routes.good.{name}"
    elif name in DEPLOYMENT_OPTIONS:
        key = f"deployments.{DEPLOYMENT_OPTIONS[name]}"
        in_file = f"{key} = [{toml_value(pasted)}]\n{GOOD}"
    shown = {
        f"my.toml: {key}": told(in_file, {}),
        environment_name(name): told(None, {environment_name(name): pasted}, upstream=URL),
        flag_name(name): told(None, {}, upstream=URL, **{name: pasted}),
    }
    for place, text in shown.items():
        assert place in text
        assert told_of(pasted, text) == []


@pytest.mark.parametrize(
    "pasted", [pytest.param(pasted, id=what) for what, pasted in PASTED.items() if what not in NAMES]
)
def test_no_layer_quotes_a_secret_in_a_route(pasted: str) -> None:
    for text in (
        told(f"[routes.{toml_value(pasted)}]\nurl = 5\n", {}),
        told(f'[routes.{toml_value(pasted)}]\nurl = "{URL}"\n', {}),
        told(f"[routes.a]\nurl = {toml_value(pasted)}\n", {}),
        told(f"{toml_value(pasted)} = 5\n{GOOD}", {}),
        told(f"{GOOD}{toml_value(pasted)} = 5\n", {}),
        told(f"workers = {{ {toml_value(pasted)} = {toml_value(pasted)} }}\n{GOOD}", {}),
        told(f"listen = [{toml_value(pasted)}, 5]\n{GOOD}", {}),
        told(f"[{toml_value(pasted)}]\n[{toml_value(pasted)}]\n{GOOD}", {}),
        told(f"{toml_value(pasted)} = 1\n{toml_value(pasted)} = 2\n{GOOD}", {}),
        told(pasted, {}),
        told(None, {"CLOUDRUN_SIDECAR_ROUTE": pasted}),
        told(None, {"CLOUDRUN_SIDECAR_UPSTREAM": pasted}),
        told(None, {}, route=(pasted,)),
        told(None, {}, route=(f"a={pasted}",)),
        told(None, {}, route=(f"{pasted}={URL}",)),
        told(None, {}, route=(f"{pasted}={URL}", f"{pasted}={URL}")),
        told(None, {}, upstream=pasted),
    ):
        assert told_of(pasted, text) == []


@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
def test_a_secret_in_place_of_the_settings_file_is_not_quoted(pasted: str) -> None:
    for config, environment, place in (
        (Path(pasted), {}, "--config"),
        (None, {"CLOUDRUN_SIDECAR_CONFIG": pasted}, "environment: CLOUDRUN_SIDECAR_CONFIG"),
    ):
        with pytest.raises(SettingsInvalid) as caught:
            load(config, environment, {"upstream": URL})
        assert f"{place}: must be the path of a settings file" in str(caught.value)
        assert told_of(pasted, str(caught.value)) == []


def test_a_secret_in_the_name_of_a_variable_is_not_quoted() -> None:
    pasted = PASTED["a client secret"]
    text = told(None, {f"CLOUDRUN_SIDECAR_{pasted}": "1"}, upstream=URL)
    assert "environment: CLOUDRUN_SIDECAR_[not shown]: is not a setting" in text


def test_a_file_with_an_unusual_name_is_read() -> None:
    Path("it's {odd} & 'old'.toml").write_text(GOOD)
    settings, *_ = load(Path("it's {odd} & 'old'.toml"), {}, {})
    assert settings.routes == {"good": RouteSettings(url=URL)}


def test_the_check_finds_every_kind_of_secret_in_a_text() -> None:
    for pasted in PASTED.values():
        assert told_of(pasted, f"… {pasted} …") != []

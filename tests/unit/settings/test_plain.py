from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from proxy.routes import AllowLists, Origin, Route
from proxy.settings.groups import TABLES
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings
from proxy.settings.plain import PlainSettings, format_version
from tests.unit.settings.given import ACCOUNT, KEY, URL, upstream


def test_plain_settings_have_the_value_of_every_setting() -> None:
    settings = Settings(
        routes={"": RouteSettings(url=URL)},
        listen=("[::1]:1", "unix:/s"), unsafe_listen=True, admin="off", workers=3, drain_timeout=0.1,
        takeover_socket="unix:/t",
        upstream_ca=Path("/ca.pem"), upstream_proxy="http://proxy:3128",
            connect_timeout=5.5, mint_timeout=6.5, stream_wait_timeout=7.5,
        max_upstream_connections=8, ping_interval=19, ping_timeout=10, upstream_idle_timeout=11, add_retry_after=False,
        http2_engine="h2", max_concurrent_streams=212, stream_window=131_072, queued_octets=1_048_577, replay_octets=13,
        max_field_section=20_000, max_interim_heads=9, cancels_per_minute=500, first_request_timeout=9.5,
        head_timeout=8.5, stall_timeout=7.5, http1_octets_per_second=7,
        upstream_cancels_per_minute=50, log_level="error", log_format="json", access_log=True,
            socket_mode="0600", socket_user="a", socket_group="b", max_connections=7,
            max_connection_age=900, max_upstream_connection_age=300,
            tls_listen=("[::1]:2",), tls_certificate=Path("/c"), tls_key=Path("/k"), tls_client_ca=Path("/a"),
            allowed_hosts=("sidecar.example",), restate_identity_keys=(KEY,),
            deployments=DeploymentSettings(hosts=("a.example",), accounts=(ACCOUNT,), audiences=("a.example=b",)),
    )  # fmt: skip
    plain = PlainSettings.from_json(settings.plain().to_json())
    names = [field.name for field in dataclasses.fields(PlainSettings) if not field.name.startswith("config")]
    assert set(names) == set(Settings.model_fields)
    for name in names:
        if name not in TABLES:
            assert (name, getattr(plain, name)) == (name, getattr(settings, name))
            assert getattr(settings, name) != Settings.model_fields[name].default
    assert plain.deployments == AllowLists(("a.example",), (ACCOUNT,), ("a.example=b",))
    assert plain.route_table().open_routes is not None


def test_plain_settings_have_the_defaults_of_the_model() -> None:
    settings = upstream()
    plain = PlainSettings.from_json(settings.plain().to_json())
    assert plain.upstream_ca is None
    assert (plain.listen, plain.drain_timeout, plain.routes) == (
        settings.listen,
        settings.drain_timeout,
        settings.route_table().routes,
    )


def test_paths_need_not_be_utf8() -> None:
    """Python has such octets of flags and variables as surrogates (PEP 383)."""
    settings = Settings(
        routes={"": RouteSettings(url=URL)}, listen=("unix:/\udcff",), upstream_ca=Path(os.fsdecode(b"/\xff.pem"))
    )
    text = settings.plain().to_json()
    assert text.isascii()
    plain = PlainSettings.from_json(text)
    assert (plain.listen, plain.upstream_ca) == (settings.listen, settings.upstream_ca)


def test_plain_routes_keep_their_order_and_have_parsed_urls_and_audiences() -> None:
    account = {"gcp_impersonate_service_account": ACCOUNT, "gcp_delegates": (ACCOUNT,), "gcp_audience": "aud"}
    routes = {
        "b": RouteSettings(url="https://b.run.app:444/base"),
        "a/u": RouteSettings.model_validate({"url": URL, **account}),
        "": RouteSettings(url="http://localhost:1", gcp_id_token=False),
    }
    plain = PlainSettings.from_json(Settings(routes=routes).plain().to_json())
    assert plain.routes == (
        Route(name="b", origin=Origin("https", "b.run.app", 444), base_path="/base", audience="https://b.run.app:444"),
        Route(
            name="a/u",
            origin=Origin("https", "svc.run.app", 443),
            audience="aud",
            impersonate=ACCOUNT,
            delegates=(ACCOUNT,),
        ),
        Route(name="", origin=Origin("http", "localhost", 1), signed=False),
    )
    assert plain.route_table().routes == plain.routes


def test_plain_settings_have_the_types_of_the_model() -> None:
    of_model, of_plain = get_type_hints(Settings), get_type_hints(PlainSettings)
    for name in Settings.model_fields.keys() - set(TABLES):
        assert (name, of_plain[name]) == (name, of_model[name])
    assert of_plain["routes"] == tuple[Route, ...]
    assert of_plain["deployments"] is AllowLists
    of_lists = get_type_hints(AllowLists)
    assert of_lists == {name: hint for name, hint in get_type_hints(DeploymentSettings).items() if name in of_lists}
    assert of_lists.keys() == DeploymentSettings.model_fields.keys()


def test_plain_settings_are_the_same_after_a_round_trip_through_json() -> None:
    routes = {"a": RouteSettings(url=URL, gcp_impersonate_service_account=ACCOUNT), "": RouteSettings(url=f"{URL}/b")}
    plain = Settings(routes=routes, upstream_ca=Path("/ca.pem"), listen=("127.0.0.1:1", "unix:/s")).plain()
    again = PlainSettings.from_json(plain.to_json())
    assert again == plain
    assert again.to_json() == plain.to_json()
    assert PlainSettings.from_json(plain.to_json().encode()) == plain


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(upstream().plain().to_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(version=format_version() + 1), f"not in version {format_version()} "),
        (lambda document: document.pop("version"), f"not in version {format_version()} "),
        (lambda document: document["settings"].pop("workers"), "settings has other fields than "),
        (lambda document: document["settings"].update(new=1), "settings has other fields than "),
        (lambda document: document["settings"].update(workers="s3cret"), "settings.workers has the wrong type: str"),
        (lambda document: document["settings"].update(workers=True), "settings.workers has the wrong type: bool"),
        (lambda document: document["settings"].update(http2_engine="x"), "settings.http2_engine has the wrong type"),
        (lambda document: document["settings"].update(upstream_ca=3), "settings.upstream_ca has the wrong type: int"),
        (lambda document: document["settings"].update(listen=["a", 3]), r"settings.listen\[1\] has the wrong type"),
        (lambda document: document["settings"].update(routes={}), "settings.routes has the wrong type: dict"),
        (lambda document: document["settings"]["routes"][0]["origin"].update(port="1"), r"s.routes\[0\].origin.port "),
        (lambda document: document.update(settings=[]), "settings has other fields than "),
    ],
)  # fmt: skip
def test_another_version_field_or_type_is_refused_without_quoting_values(
    change: Callable[[dict[str, Any]], object], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        PlainSettings.from_json(broken(change))
    assert "s3cret" not in str(refused.value)


def test_the_version_changes_with_names_and_types_of_fields_and_not_from_process_to_process() -> None:
    fields: list[list[tuple[str, Any]]] = [[("a", int)], [("b", int)], [("a", int | None)], [("a", int), ("b", int)]]
    kinds = [dataclasses.make_dataclass("Kind", given) for given in fields]
    assert len({format_version((kind,)) for kind in kinds}) == len(kinds)
    code = "from proxy.settings.plain import format_version; print(format_version())"
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, text=True)
        assert int(ran.stdout) == format_version()


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_json_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of json or ours
        PlainSettings.from_json(text)


def test_the_login_of_a_proxy_is_in_no_repr() -> None:
    settings = upstream(upstream_proxy="http://ada:hunter2@proxy:3128")
    assert settings.plain().upstream_proxy == "http://ada:hunter2@proxy:3128"
    assert "hunter2" not in repr(settings) + repr(settings.plain())

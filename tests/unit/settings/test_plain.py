from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from proxy.routes import Origin, Route
from proxy.settings import PlainSettings, RouteSettings, Settings
from tests.unit.settings.given import ACCOUNT, URL, upstream


def test_plain_settings_are_what_was_set_name_by_name() -> None:
    settings = Settings(
        routes={"": RouteSettings(url=URL)},
        listen=("[::1]:1", "unix:/s"), unsafe_listen=True, admin="off", workers=3, drain_timeout=0.1,
        upstream_ca=Path("/ca.pem"), connect_timeout=5.5, mint_timeout=6.5, stream_wait_timeout=7.5,
        max_upstream_connections=8, ping_interval=19, ping_timeout=10, upstream_idle_timeout=11, add_retry_after=False,
        http2_engine="h2", max_concurrent_streams=212, stream_window=131_072, queued_octets=1_048_577, replay_octets=13,
        max_field_section=20_000, log_level="error", log_format="json", access_log=True,
            allowed_hosts=("sidecar.example",),
    )  # fmt: skip
    plain = PlainSettings.from_json(settings.to_json())
    names = [field.name for field in dataclasses.fields(PlainSettings)]
    assert set(names) == set(Settings.model_fields)
    for name in names:
        if name != "routes":
            assert (name, getattr(plain, name)) == (name, getattr(settings, name))
            assert getattr(settings, name) != Settings.model_fields[name].default


def test_defaults_stay_what_they_are() -> None:
    settings = upstream()
    plain = PlainSettings.from_json(settings.to_json())
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
    text = settings.to_json()
    assert text.isascii()
    plain = PlainSettings.from_json(text)
    assert (plain.listen, plain.upstream_ca) == (settings.listen, settings.upstream_ca)


def test_routes_come_in_their_order_with_url_taken_apart_and_audience_filled_in() -> None:
    account = {"gcp_impersonate_service_account": ACCOUNT, "gcp_delegates": (ACCOUNT,), "gcp_audience": "aud"}
    routes = {
        "b": RouteSettings(url="https://b.run.app:444/base"),
        "a/u": RouteSettings.model_validate({"url": URL, **account}),
        "": RouteSettings(url="http://localhost:1", gcp_id_token=False),
    }
    plain = PlainSettings.from_json(Settings(routes=routes).to_json())
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

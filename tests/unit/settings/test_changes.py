from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import structlog

from proxy.routes import Route, parse_upstream
from proxy.settings.changes import RELOADABLE, STAYS_WITH, Changes, log_refused, log_reloaded
from proxy.settings.plain import PlainSettings
from tests.support.settings import plain_settings


def with_routes(*urls: str, **more: object) -> PlainSettings:
    """Return settings with routes named after the first letter of their hosts."""
    routes = tuple(Route(name=url[8], origin=parse_upstream(url)[0]) for url in urls)
    return dataclasses.replace(plain_settings(**more), routes=routes)


def test_routes_are_compared_by_name() -> None:
    before = with_routes("https://a.run.app", "https://b.run.app", "https://c.run.app")
    after = with_routes("https://c.run.app", "https://b.run.app:444", "https://d.run.app")
    changes = Changes.between(before, after)
    assert (changes.routes_added, changes.routes_changed, changes.routes_removed) == (("d",), ("b",), ("a",))
    assert changes.in_force == after
    assert changes


def test_a_setting_that_needs_a_restart_keeps_its_value_and_is_named() -> None:
    before = with_routes("https://a.run.app")
    after = with_routes("https://a.run.app", workers=3, stream_window=1 << 16, drain_timeout=3.0)
    changes = Changes.between(before, after)
    assert changes.need_restart == ("workers", "stream_window")
    assert changes.settings == ("drain_timeout",)
    assert (changes.in_force.workers, changes.in_force.drain_timeout) == (before.workers, 3.0)
    again = Changes.between(changes.in_force, after)
    assert (again.need_restart, bool(again)) == (("workers", "stream_window"), False)


LIMITS = {
    "tls_client_ca": None,
    "tls_certificate": Path("/of-another-name.pem"),
    "tls_key": Path("/of-another-name.key"),
    "restate_identity_keys": (),
    "allowed_hosts": (),
}
"""What says who is served, less strict than in `GUARDED`."""

GUARDED: dict[str, object] = {
    "listen": ("0.0.0.0:9081",),
    "tls_listen": ("0.0.0.0:9443",),
    "unsafe_listen": True,
    "tls_client_ca": Path("/clients.pem"),
    "tls_certificate": Path("/sidecar.pem"),
    "tls_key": Path("/sidecar.key"),
    "restate_identity_keys": ("publickeyv1_H4B8yKogWbQfathRbhskc5TawpProvQAYAXCQxnifjpZ",),
    "allowed_hosts": ("sidecar.example",),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_goes_with_new_addresses_stays_as_long_as_the_old_ones(name: str) -> None:
    before = with_routes("https://a.run.app", **GUARDED)
    narrow = {"listen": ("127.0.0.1:9081",), "tls_listen": ("127.0.0.1:9443",), "unsafe_listen": False}
    after = with_routes("https://a.run.app", **{**GUARDED, **narrow, name: LIMITS[name]})
    changes = Changes.between(before, after)
    assert set(changes.need_restart) == {*narrow, name}
    assert not changes.settings
    assert changes.in_force == before
    alone = Changes.between(before, with_routes("https://a.run.app", **{**GUARDED, name: LIMITS[name]}))
    assert (alone.settings, alone.need_restart) == ((name,), ())


def test_the_memory_for_one_window_stays_with_the_window() -> None:
    before = with_routes("https://a.run.app", stream_window=1 << 20, queued_octets=1 << 28)
    after = with_routes("https://a.run.app", stream_window=1 << 16, queued_octets=1 << 17)
    changes = Changes.between(before, after)
    assert set(changes.need_restart) == {"stream_window", "queued_octets"}
    assert changes.in_force == before


def test_what_goes_with_a_setting_that_needs_a_restart_can_change_by_itself() -> None:
    assert STAYS_WITH.keys() <= RELOADABLE
    assert not RELOADABLE & frozenset().union(*STAYS_WITH.values())


def test_every_reloadable_name_is_a_setting() -> None:
    assert {field.name for field in dataclasses.fields(PlainSettings)} >= RELOADABLE


def test_a_removed_route_is_named_and_long_lists_are_cut() -> None:
    changes = Changes.between(with_routes("https://a.run.app"), with_routes("https://b.run.app"))
    many = dataclasses.replace(changes, routes_removed=tuple(map(str, range(250))))
    with structlog.testing.capture_logs() as lines:
        log_reloaded(many, requested=False)
    assert [line["log_level"] for line in lines] == ["info", "warning"]
    assert lines[1]["routes"][:2] == ["0", "1"]
    assert lines[1]["routes"][100:] == ["and 150 more"]
    with structlog.testing.capture_logs() as lines:
        log_refused(many.routes_removed, config=None)
    assert lines[0]["problems"][99:] == ["99", "and 150 more"]

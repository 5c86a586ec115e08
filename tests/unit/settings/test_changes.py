from __future__ import annotations

import dataclasses

import structlog

from proxy.routes import Route, parse_upstream
from proxy.settings import PlainSettings
from proxy.settings.changes import RELOADABLE, Changes, log_reloaded
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

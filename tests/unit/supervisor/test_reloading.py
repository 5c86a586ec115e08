"""What the supervisor does with settings that were read again."""

from __future__ import annotations

from contextlib import closing

from proxy.downstream.config import ListenerConfig
from proxy.network.service_manager import ServiceManager
from proxy.settings import RouteSettings
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import CommandLine
from proxy.supervisor.reloading import Reloading
from tests.support.settings import plain_settings


def settings_with(*names: str) -> PlainSettings:
    return plain_settings(routes={name: RouteSettings(url="https://a-123456789012.run.app") for name in names})


def test_what_several_reloads_at_once_remove_is_all_known_until_the_next() -> None:
    before = settings_with("", "a", "b")
    config = ListenerConfig((), 2, before.to_json())
    command_line = CommandLine.of_this_process("proxy.cli.settings_process")
    with closing(Reloading(command_line, before, config, ServiceManager({}))) as reloading:
        for read in (settings_with("a", "b"), settings_with("b")):
            reloading._deliver(read, True)
        reloading.take([], draining=False)
        assert reloading.gone == {("route", "/"), ("route", "a")}
        reloading.take([], draining=False)
        assert reloading.gone == set()


def test_origins_and_accounts_that_no_route_has_any_more_are_gone_whether_a_route_was_removed_or_changed() -> None:
    one, other = "https://a-123456789012.run.app", "https://b-123456789012.run.app"
    account = "invoker@p.iam.gserviceaccount.com"
    before = plain_settings(
        routes={
            "a": RouteSettings(url=one),
            "b": RouteSettings(url=other, gcp_impersonate_service_account=account),
            "c": RouteSettings(url=other, gcp_id_token=False),
        }
    )
    config = ListenerConfig((), 2, before.to_json())
    command_line = CommandLine.of_this_process("proxy.cli.settings_process")
    with closing(Reloading(command_line, before, config, ServiceManager({}))) as reloading:
        for routes, gone in (
            ({"a": one, "c": other}, {("route", "b"), ("mints", account)}),
            ({"a": one, "c": one}, {("origin", other)}),
        ):
            read = plain_settings(routes={name: RouteSettings(url=url) for name, url in routes.items()})
            reloading._deliver(read, True)
            reloading.take([], draining=False)
            assert reloading.gone == gone

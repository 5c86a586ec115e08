from __future__ import annotations

import pytest

from proxy.cli.deployment_options import find_targets
from proxy.cli.failures import Unusable
from proxy.cli.options import settings_flags
from proxy.deployments.target import Authentication
from proxy.settings.groups import TABLES
from proxy.settings.loading import DEPLOYMENT_OPTIONS, INLINE_OPTIONS
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings

SETTINGS = Settings(
    routes={name: RouteSettings(url=f"https://{name or 'rest'}.run.app") for name in ("b", "team/a", "")}
)


def chosen(names: tuple[str, ...], settings: Settings = SETTINGS) -> list[str]:
    targets = find_targets(names, settings, "http://127.0.0.1:9081", Authentication(), (), {})
    return [target.route.name for target in targets]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("team/a", "b"), ["team/a", "b"]),
        (("/b", "b", "/b/"), ["b"]),
        (("/",), [""]),
    ],
)
def test_routes_are_chosen_by_name_or_path_in_the_order_given(names: tuple[str, ...], expected: list[str]) -> None:
    assert chosen(names) == expected


def test_an_unknown_route_is_refused_with_a_list_of_the_routes() -> None:
    with pytest.raises(Unusable) as caught:
        chosen(("b", "teams/a"))
    assert caught.value.exit_code == 2
    assert caught.value.format_message() == (
        "there is no route /teams/a; the routes are: /b, /team/a, /; did you mean /team/a?"
    )


def test_all_unknown_routes_are_told_at_once() -> None:
    with pytest.raises(
        Unusable, match=r"2 problems with the deployment\n  there is no route /x.*\n  there is no route /y"
    ):
        chosen(("x", "y"))


def test_open_routes_have_no_names_to_choose() -> None:
    settings = Settings(deployments=DeploymentSettings(hosts=("greeter.example.com",)))
    with pytest.raises(Unusable, match="there is no named route, only"):
        chosen(("greeter",), settings)
    assert chosen(("greeter.example.com",), settings) == ["https://greeter.example.com"]


def test_all_flags_are_accepted_and_help_lists_the_relevant_ones() -> None:
    flags = settings_flags(shown=frozenset({"mint_timeout"}))
    assert {flag.name for flag in flags} == {
        "config",
        "route",
        "upstream",
        *INLINE_OPTIONS,
        *DEPLOYMENT_OPTIONS,
        *Settings.model_fields,
    } - {*TABLES}
    listed = {flag.name for flag in flags if not getattr(flag, "hidden", False)}
    assert listed == {"config", "route", "upstream", "mint_timeout", *INLINE_OPTIONS}
    without = {flag.name for flag in settings_flags(authentication=False)}
    assert {flag.name for flag in flags} - without == {name for name in INLINE_OPTIONS if name.startswith("gcp_")}
    assert not [flag for flag in settings_flags() if getattr(flag, "hidden", False)]

from __future__ import annotations

import pytest

from proxy.cli.options import Unusable, chosen_routes, settings_flags
from proxy.settings import RouteSettings, Settings
from proxy.settings.loading import DEPLOYMENT_OPTIONS, INLINE_OPTIONS
from proxy.settings.model import TABLES, DeploymentSettings

SETTINGS = Settings(
    routes={name: RouteSettings(url=f"https://{name or 'rest'}.run.app") for name in ("b", "team/a", "")}
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ["b", "team/a", ""]),
        (("team/a", "b"), ["team/a", "b"]),
        (("/b", "b", "/b/"), ["b"]),
        (("/",), [""]),
    ],
)
def test_routes_are_chosen_by_name_or_path_in_the_order_given(names: tuple[str, ...], expected: list[str]) -> None:
    assert [route.name for route in chosen_routes(SETTINGS, names)] == expected


def test_an_unknown_route_is_refused_with_a_list_of_the_routes() -> None:
    with pytest.raises(Unusable) as caught:
        chosen_routes(SETTINGS, ("b", "teams/a"))
    assert caught.value.exit_code == 2
    assert caught.value.format_message() == (
        "there is no route /teams/a; the routes are: /b, /team/a, /; did you mean /team/a?"
    )


@pytest.mark.parametrize("names", [(), ("greeter",)])
def test_open_routes_have_no_names_to_choose(names: tuple[str, ...]) -> None:
    settings = Settings(deployments=DeploymentSettings(hosts=("greeter.example.com",)))
    with pytest.raises(Unusable, match="there is no named route"):
        chosen_routes(settings, names)


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
    assert not [flag for flag in settings_flags() if getattr(flag, "hidden", False)]

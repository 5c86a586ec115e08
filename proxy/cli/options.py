"""Shared by all commands that read the settings: flags, help with headings, error messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from proxy.exit_codes import ExitCode
from proxy.quoting import plain, quoted
from proxy.routes import Route
from proxy.settings import Loaded, RouteSettings, Settings, SettingsInvalid, load_traced
from proxy.settings.field_texts import default_text, summary, unit_of
from proxy.settings.layers import did_you_mean, flag_name
from proxy.settings.loading import DEPLOYMENT_OPTIONS, INLINE_OPTIONS
from proxy.settings.model import GROUPS, DeploymentSettings

__all__ = ["GroupedCommand", "Unusable", "chosen_routes", "settings_flags", "settings_from"]

_ROUTES: Final = "Routes"
_MOST_SHOWN_ROUTES: Final = 20
_INLINE: Final = "For all routes given by flag"
_DEPLOYMENTS: Final = "What deployments may choose themselves"


class _Setting(click.Option):
    """A flag with a heading. click does not validate its value, so that all problems can be reported at once."""

    def __init__(self, *names: str, heading: str, **attributes: Any) -> None:
        super().__init__(names, **attributes)
        self.heading = heading


class GroupedCommand(click.Command):
    """A command whose flags are listed under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue
            listed = records.setdefault(getattr(parameter, "heading", "Other"), [])
            listed += filter(None, [parameter.get_help_record(ctx)])
        for heading, listed in records.items():
            if listed:
                with formatter.section(heading):
                    formatter.write_dl(listed, col_max=34)


class Unusable(click.ClickException):
    """The command cannot start with these settings or arguments; exit code 2."""

    exit_code = ExitCode.SETTINGS_UNUSABLE

    @classmethod
    def settings(cls, invalid: SettingsInvalid) -> Unusable:
        """Return an error with all problems, one per line."""
        count = len(invalid.problems)
        lines = [f"  {problem}" for problem in invalid.problems]
        return cls("\n".join([f"{count} problem{'s' * (count > 1)} with the settings", *lines]))

    def show(self, file: Any = None) -> None:
        """Print the message to standard error, after the name of the program."""
        click.echo(f"cloudrun-sidecar: {self.format_message()}", err=True)


def settings_flags(*, shown: frozenset[str] | None = None) -> list[click.Parameter]:
    """Return a flag for every setting, in the order and under the headings of the sample file.

    All flags are accepted. `--help` lists those of routes, and of the others those in `shown` (None: all).
    """
    return list(_flags(shown))


def settings_from(config: Path | None, flags: dict[str, Any]) -> Loaded:
    """Load the settings from file, environment and flags; raises Unusable with all problems."""
    try:
        return load_traced(config, os.environ, flags)
    except SettingsInvalid as exc:
        raise Unusable.settings(exc) from None


def chosen_routes(settings: Settings, names: tuple[str, ...]) -> list[Route]:
    """Return the routes with these names, in this order; all routes if there is no name.

    Raises Unusable for an unknown name, and if there are open routes only.
    A name may be written as a path: `/greeter`; `/` is the route for all other paths.
    """
    routes = {route.name: route for route in settings.route_table().routes}
    if not routes:
        raise Unusable(
            "there is no named route, only [deployments]: register a deployment to try its host and headers; what is "
            "wrong is in the answer"
        )
    if not names:
        return list(routes.values())
    chosen = {}
    for name in (given.strip("/") for given in names):
        if name not in routes:
            known = ", ".join(f"/{route}" for route in list(routes)[:_MOST_SHOWN_ROUTES])
            more = len(routes) - _MOST_SHOWN_ROUTES
            known += f" and {more} more" if more > 0 else ""
            hint = did_you_mean(name, routes, lambda near: f"/{near}")
            shown = f"/{name}" if plain(name) is not None else f"of this name: it is {quoted(name)}"
            raise Unusable(f"there is no route {shown}; the routes are: {known}{hint}")
        chosen[name] = routes[name]
    return list(chosen.values())


def _flags(shown: frozenset[str] | None) -> Iterator[click.Parameter]:
    yield _Setting(
        "--config",
        heading=_ROUTES,
        type=click.Path(path_type=Path),
        help="Settings file (TOML). [default: config/routes.toml if there is one]",
        metavar="FILE",
    )
    yield _Setting(
        "--route",
        heading=_ROUTES,
        multiple=True,
        metavar="NAME=URL",
        help="A Cloud Run service under a path prefix; repeatable.",
    )
    yield _Setting(
        "--upstream", heading=_ROUTES, metavar="URL", help="The service for everything, or for all other paths."
    )
    for name in INLINE_OPTIONS:
        yield _flag(name, RouteSettings.model_fields[name], _INLINE)
    for option, name in DEPLOYMENT_OPTIONS.items():
        hidden = shown is not None and option not in shown
        yield _flag(option, DeploymentSettings.model_fields[name], _DEPLOYMENTS, hidden=hidden)
    for heading, names in GROUPS.items():
        for name in names:
            hidden = shown is not None and name not in shown
            yield _flag(name, Settings.model_fields[name], heading, hidden=hidden)


def _flag(name: str, info: FieldInfo, heading: str, *, hidden: bool = False) -> click.Parameter:
    text = f"{summary(info)}.{_default(info)}"
    if info.annotation is bool:
        spelled = f"{flag_name(name)}/--no-{name.replace('_', '-')}"
        return _Setting(spelled, name, heading=heading, default=None, help=text, hidden=hidden)
    several = get_origin(info.annotation) is tuple
    return _Setting(
        flag_name(name),
        name,
        heading=heading,
        multiple=several,
        metavar=_placeholder(name, info),
        help=text,
        hidden=hidden,
    )


def _default(info: FieldInfo) -> str:
    """Return the default as on the command line; `""` for false, empty and unset defaults."""
    if not info.default:
        return ""
    return f" [default: {default_text(info)}]"


def _placeholder(name: str, info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return f"[{'|'.join(get_args(info.annotation))}]"
    if unit := unit_of(info):
        return unit.upper()
    named = {"listen": "ADDR", "allowed_hosts": "HOST", "admin": "ADDR", "upstream_ca": "FILE", "gcp_audience": "TEXT"}
    named |= {"restate_identity_keys": "KEY", "deployments_hosts": "HOST", "deployments_audiences": "HOST=AUDIENCE"}
    return named.get(name, "EMAIL")

"""`cloudrun-sidecar serve`: flags made of the settings, and the sidecar run with what comes out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from proxy.settings import RouteSettings, Settings, SettingsInvalid, dump_toml, load_traced
from proxy.settings.layers import flag_name
from proxy.settings.loading import INLINE_OPTIONS
from proxy.settings.model import GROUPS
from proxy.settings.printing import default_text
from proxy.settings.wording import summary, unit_of

__all__ = ["serve"]

_ROUTES: Final = "Routes"
_INLINE: Final = "For all routes given by flag"

_EPILOG: Final = """\
config/routes.example.toml says more about every setting. Every flag is also a variable (--drain-timeout is
CLOUDRUN_SIDECAR_DRAIN_TIMEOUT), and a setting of the file (drain_timeout), where routes are tables. Flags win over
variables, and those over the file; routes of all three are joined by name.
"""


class _Setting(click.Option):
    """A flag that stands under a heading. Its value is not judged here, so that all problems can be told at once."""

    def __init__(self, *names: str, heading: str, **attributes: Any) -> None:
        super().__init__(names, **attributes)
        self.heading = heading


class _Grouped(click.Command):
    """A command whose flags are listed under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            listed = records.setdefault(getattr(parameter, "heading", "Other"), [])
            listed += filter(None, [parameter.get_help_record(ctx)])
        for heading, listed in records.items():
            with formatter.section(heading):
                formatter.write_dl(listed, col_max=34)


def _flags() -> Iterable[click.Parameter]:
    """Yield a flag for every setting, in the order and under the headings of the sample file."""
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
    for heading, names in GROUPS.items():
        yield from (_flag(name, Settings.model_fields[name], heading) for name in names)


def _flag(name: str, info: FieldInfo, heading: str) -> click.Parameter:
    text = f"{summary(info)}.{_default(info)}"
    if info.annotation is bool:
        spelled = f"{flag_name(name)}/--no-{name.replace('_', '-')}"
        return _Setting(spelled, name, heading=heading, default=None, help=text)
    several = get_origin(info.annotation) is tuple
    return _Setting(
        flag_name(name), name, heading=heading, multiple=several, metavar=_placeholder(name, info), help=text
    )


def _default(info: FieldInfo) -> str:
    """Return the default as it would be written on the command line; nothing where that would say nothing."""
    if not info.default:
        return ""
    if isinstance(info.default, tuple):
        return f" [default: {' '.join(info.default)}]"
    return f" [default: {default_text(info).strip(chr(34))}]"


def _placeholder(name: str, info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return f"[{'|'.join(get_args(info.annotation))}]"
    if unit := unit_of(info):
        return unit.upper()
    named = {"listen": "ADDR", "admin": "ADDR", "upstream_ca": "FILE", "gcp_audience": "TEXT"}
    return named.get(name, "EMAIL")


@click.command(cls=_Grouped, params=list(_flags()), epilog=_EPILOG)
@click.option("--print-config", is_flag=True, help="Show the settings that result, as TOML, and end.")
def serve(config: Path | None, print_config: bool, **flags: Any) -> None:
    """Run the sidecar until SIGTERM.

    Restate reaches a route as http://HOST:9081/NAME; its Cloud Run service gets each request with a Google ID token.
    One service is enough to begin with:

        cloudrun-sidecar serve --route greeter=https://greeter-….run.app
    """
    try:
        settings, places = load_traced(config, os.environ, flags)
    except SettingsInvalid as exc:
        raise _Unusable(exc) from None
    if print_config:
        click.echo(dump_toml(settings, places), nl=False)
        return
    from proxy.sidecar import serve as run

    raise SystemExit(run(settings))


class _Unusable(click.ClickException):
    """Everything that is wrong with the settings, a line each."""

    exit_code = 2

    def __init__(self, invalid: SettingsInvalid) -> None:
        count = len(invalid.problems)
        lines = [f"  {problem}" for problem in invalid.problems]
        super().__init__("\n".join([f"{count} problem{'s' * (count > 1)} with the settings", *lines]))

    def show(self, file: Any = None) -> None:
        click.echo(f"cloudrun-sidecar: {self.format_message()}", err=True)

"""Shared by all commands that read the settings: flags, and help with headings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from proxy.cli.completion import Complete, complete_accounts, complete_audiences, complete_file, one_of
from proxy.cli.failures import Unusable
from proxy.cli.parsing import Command
from proxy.settings.field_texts import default_text, summary, unit_of
from proxy.settings.groups import GROUPS
from proxy.settings.layers import SettingsInvalid, flag_name
from proxy.settings.loading import DEPLOYMENT_OPTIONS, INLINE_OPTIONS, Loaded, load
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings

__all__ = ["GroupedCommand", "HeadedOption", "settings_flags", "settings_from"]

_PLACEHOLDERS: Final = {
    **dict.fromkeys(("listen", "tls_listen", "admin", "takeover_socket"), "ADDR"),
    **dict.fromkeys(("tls_certificate", "tls_key", "tls_client_ca", "upstream_ca"), "FILE"),
    **dict.fromkeys(("allowed_hosts", "deployments_hosts"), "HOST"),
    **dict.fromkeys(("socket_user", "socket_group"), "NAME"),
    "socket_mode": "MODE",
    "restate_identity_keys": "KEY",
    "upstream_proxy": "URL",
    "gcp_audience": "TEXT",
    "deployments_audiences": "HOST=AUDIENCE",
}
"""What `--help` shows for the value of a setting without a unit; of all others, it is an e-mail."""

_ROUTES: Final = "Routes"
_INLINE: Final = "For all routes given by flag"
_DEPLOYMENTS: Final = "What deployments may choose themselves"


class HeadedOption(click.Option):
    """A flag with a heading. click does not validate its value, so that all problems can be reported at once."""

    def __init__(self, *names: str, heading: str, **attributes: Any) -> None:
        super().__init__(names, **attributes)
        self.heading = heading


class GroupedCommand(Command):
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


def settings_flags(*, shown: frozenset[str] | None = None, authentication: bool = True) -> list[click.Parameter]:
    """Return a flag for every setting, in the order and under the headings of the sample file.

    All flags are accepted. `--help` lists those of routes, and of the others those in `shown` (None: all). Without
    `authentication`, the flags for the authentication of routes are left out.
    """
    return [flag for flag in _flags(shown) if authentication or not (flag.name or "").startswith("gcp_")]


def settings_from(config: Path | None, flags: dict[str, Any]) -> Loaded:
    """Load the settings from file, environment and flags; raises Unusable with all problems."""
    try:
        return load(config, os.environ, flags)
    except SettingsInvalid as exc:
        raise Unusable.listing("the settings", [str(problem) for problem in exc.problems]) from None


def _flags(shown: frozenset[str] | None) -> Iterator[click.Parameter]:
    yield HeadedOption(
        "--config",
        heading=_ROUTES,
        # click would end the command for a file that cannot be read, without the other mistakes.
        type=click.Path(readable=False, path_type=Path),
        help="Settings file (TOML). [default: config/routes.toml if there is one]",
        metavar="FILE",
    )
    yield HeadedOption(
        "--route",
        heading=_ROUTES,
        multiple=True,
        metavar="NAME=URL",
        help="A Cloud Run service under a path prefix; repeatable.",
    )
    yield HeadedOption(
        "--upstream", heading=_ROUTES, metavar="URL", help="The service for everything, or for all other paths."
    )
    for name in INLINE_OPTIONS:
        # The commands that look at deployments take the word of `register`, too.
        also = ("--gcp-delegate",) if name == "gcp_delegates" and shown is not None else ()
        yield _flag(name, RouteSettings.model_fields[name], _INLINE, also=also)
    for option, name in DEPLOYMENT_OPTIONS.items():
        hidden = shown is not None and option not in shown
        yield _flag(option, DeploymentSettings.model_fields[name], _DEPLOYMENTS, hidden=hidden)
    for heading, names in GROUPS.items():
        for name in names:
            hidden = shown is not None and name not in shown
            yield _flag(name, Settings.model_fields[name], heading, hidden=hidden)


def _flag(
    name: str, info: FieldInfo, heading: str, *, hidden: bool = False, also: tuple[str, ...] = ()
) -> click.Parameter:
    text = f"{summary(info)}.{f' [default: {default_text(info)}]' if info.default else ''}"
    complete = _completion(name, info)
    if info.annotation is bool:
        spelled = f"{flag_name(name)}/--no-{name.replace('_', '-')}"
        return HeadedOption(spelled, name, heading=heading, default=None, help=text, hidden=hidden)
    several = get_origin(info.annotation) is tuple
    return HeadedOption(
        flag_name(name),
        *also,
        name,
        heading=heading,
        multiple=several,
        metavar=_placeholder(name, info),
        help=text,
        hidden=hidden,
        shell_complete=complete,
    )


def _completion(name: str, info: FieldInfo) -> Complete | None:
    """Return what completes the value of a setting; None if nothing does."""
    if get_origin(info.annotation) is Literal:
        return one_of(*get_args(info.annotation))
    if _placeholder(name, info) == "FILE":
        return complete_file
    return {
        "admin": one_of("off"),
        "gcp_impersonate_service_account": complete_accounts,
        "gcp_delegates": complete_accounts,
        "gcp_audience": complete_audiences,
    }.get(name)


def _placeholder(name: str, info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return f"[{'|'.join(get_args(info.annotation))}]"
    if unit := unit_of(info):
        return unit.upper()
    return _PLACEHOLDERS.get(name, "EMAIL")

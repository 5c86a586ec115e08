"""Shared by the commands that look at deployments: their flags, and what those stand for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from proxy.cli.failures import Gathered, Unusable
from proxy.cli.options import HeadedOption
from proxy.cli.seconds import Seconds
from proxy.deployments.target import (
    Authentication,
    Headers,
    Target,
    TargetRefused,
    checked_sidecar_url,
    find_target,
    read_headers,
    sidecar_url,
    split_url,
)
from proxy.doctor.checking import Subject
from proxy.quoting import holds_credential, quoted
from proxy.routes.open_routes import FIELD_PREFIX
from proxy.settings.layers import environment_name, flag_name, variable_value
from proxy.settings.loading import INLINE_OPTIONS
from proxy.settings.model import Settings

__all__ = [
    "ADMIN_VARIABLE",
    "CHECKED",
    "Access",
    "deployment_flags",
    "find_targets",
    "given_for",
    "restate_access",
    "restate_flags",
    "sidecar_of",
    "subject_of",
    "take_authentication",
    "timeout_option",
]

ADMIN_VARIABLE: Final = "RESTATE_ADMIN_URL"
"""Variable with the URL of Restate's admin API; Restate's CLI has it, too."""
TOKEN_VARIABLE: Final = "RESTATE_AUTH_TOKEN"  # noqa: S105 - a name; Restate's CLI has it
CHECKED: Final = frozenset({"upstream_ca", "upstream_proxy", "connect_timeout", "mint_timeout", "http2_engine"})
"""The settings of the sidecar that a check depends on."""
_DEPLOYMENT: Final = "The deployment"
_RESTATE: Final = "Restate"
_MOST_TOKEN_OCTETS: Final = 64 << 10


class Access(NamedTuple):
    """Where Restate's admin API is, and what opens it."""

    url: str
    """Its URL, without a slash at the end."""
    token: str | None
    """The token; None if there is none. It is a secret."""


def deployment_flags() -> list[click.Parameter]:
    """Return the flags that say how a deployment is called, but for those of its authentication."""
    return [
        HeadedOption(
            "--extra-header",
            heading=_DEPLOYMENT,
            multiple=True,
            metavar="NAME=VALUE",
            help="Additional header of the deployment, sent with every request to it; repeatable.",
        ),
        HeadedOption(
            "--sidecar",
            heading=_DEPLOYMENT,
            metavar="URL",
            help="Where Restate reaches the sidecar, as in http://cloudrun-sidecar:9081. "
            "[default: the first address of listen, http://127.0.0.1:9081]",
        ),
    ]


def timeout_option(text: str) -> Callable[[Any], Any]:
    """Return the option for the deadline of an answer, with this help."""
    return click.option(
        "--timeout",
        "answer_timeout",
        type=Seconds(0.1, 3600),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help=text,
    )


def restate_flags(admin_help: str, default: str | None) -> list[click.Parameter]:
    """Return the flags that say where Restate's admin API is; with a default, its variable is read, too."""
    return [
        HeadedOption(
            "--restate-admin",
            heading=_RESTATE,
            metavar="URL",
            help=admin_help,
            envvar=None if default is None else ADMIN_VARIABLE,
            default=default,
        ),
        HeadedOption(
            "--restate-token-file",
            heading=_RESTATE,
            type=click.Path(readable=False, path_type=Path),
            metavar="FILE",
            help=f"File with the token of the admin API, if it needs one. [default: the variable {TOKEN_VARIABLE}]",
        ),
    ]


def restate_access(url: str, token_file: Path | None) -> Access:
    """Return where the admin API is and its token; raises Unusable, which quotes neither the token nor a login."""
    source = click.get_current_context().get_parameter_source("restate_admin")
    flag = ADMIN_VARIABLE if source is click.core.ParameterSource.ENVIRONMENT else "--restate-admin"
    parts = split_url(url)
    mistakes = Gathered()
    with mistakes:
        if parts is None or holds_credential(url):
            what = f"{flag} must be the URL of Restate's admin API, as in http://127.0.0.1:9070"
            raise Unusable(f"{what}, not {quoted(url)}")
        if parts.username is not None or parts.query or parts.fragment:
            raise Unusable(f"{flag} must have neither a user name nor ? nor #; a token stands in {TOKEN_VARIABLE}")
    with mistakes:
        token = _admin_token(token_file)
    mistakes.raise_found()
    return Access(url.rstrip("/"), token)


def _admin_token(token_file: Path | None) -> str | None:
    where, token = TOKEN_VARIABLE, variable_value(os.environ, TOKEN_VARIABLE) or None
    if token_file is not None:
        where = f"--restate-token-file {quoted(token_file)}"
        try:
            with token_file.open("rb") as file:
                token = file.read(_MOST_TOKEN_OCTETS).decode("ascii", "replace").strip()
        except (OSError, ValueError) as exc:
            raise Unusable(f"{where} cannot be read: {getattr(exc, 'strerror', None) or 'no path'}") from None
        if not token:
            raise Unusable(f"{where} is empty; it must have the token of Restate's admin API")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise Unusable(f"{where} must have one token, of visible ASCII characters (it is not shown)")
    return token


def given_for(sidecar: str | None, extra_headers: Sequence[str], mistakes: Gathered) -> tuple[str, Headers]:
    """Return where Restate reaches the sidecar, and the headers of a deployment; nothing of what is wrong or missing.

    What is wrong is gathered. It is asked before the settings are read, which may be wrong, too.
    """
    place, headers = "", Headers()
    with mistakes:
        try:
            place = "" if sidecar is None else checked_sidecar_url(sidecar)
        except ValueError as exc:
            raise Unusable(f"--sidecar {exc}") from None
    with mistakes:
        try:
            headers = read_headers(extra_headers)
        except TargetRefused as exc:
            raise _unusable(exc.problems) from None
    return place, headers


def sidecar_of(settings: Settings, *, required: bool = True) -> str:
    """Return where Restate reaches the sidecar if that is not given: the first address of `listen`.

    If there is no such address, raises Unusable, or returns `""` where it is not required.
    """
    found = sidecar_url(settings.listen)
    if found is None and required:
        raise Unusable("listen has no address with a port; --sidecar says where Restate reaches the sidecar")
    return found or ""


def take_authentication(flags: dict[str, Any]) -> Authentication:
    """Remove the `gcp_…` flags and return them as the authentication of a deployment.

    If routes are given by flag or variable, the flags are those of these routes, as for `serve`, and stay.
    """
    inline = (flags.get("route"), flags.get("upstream"))
    if any(inline) or any(os.environ.get(environment_name(name)) for name in ("route", "upstream")):
        return Authentication()
    given = {name: flags.pop(name, None) for name in INLINE_OPTIONS if name.startswith("gcp_")}
    return Authentication(
        id_token=given["gcp_id_token"],
        impersonate=given["gcp_impersonate_service_account"],
        audience=given["gcp_audience"],
        delegates=tuple(given["gcp_delegates"] or ()),
    )


def find_targets(
    names: Sequence[str],
    settings: Settings,
    sidecar: str,
    authentication: Authentication,
    headers: Headers,
    flags: Mapping[str, Any],
) -> list[Target]:
    """Return the deployments that names, hosts or URLs stand for, each once; raises Unusable with all problems.

    `flags` are those that `take_authentication` has left: with a `gcp_…` flag there are no open routes.
    """
    table = settings.route_table()
    targets: dict[tuple[str, str], Target] = {}
    problems: list[str] = []
    lost = [name for name in INLINE_OPTIONS if name.startswith("gcp_") and flags.get(name) not in (None, ())]
    for name in names:
        try:
            target = find_target(name, table, sidecar, authentication, headers)
        except TargetRefused as exc:
            problems += exc.problems
        else:
            targets[target.authority, target.path] = target
            if lost and target.route.is_open:
                problems.append(_not_its_own(lost[0], flags[lost[0]], subject_of(target).name))
    if problems:
        raise _unusable(problems)
    return list(targets.values())


def _unusable(problems: Sequence[str]) -> Unusable:
    return Unusable(*problems) if len(problems) == 1 else Unusable.listing("the deployment", problems)


def _not_its_own(option: str, value: object, host: str) -> str:
    header = f"{FIELD_PREFIX.decode()}{option.replace('_', '-')}"
    return (
        f"{flag_name(option, value)} is of the routes that --route and --upstream or their variables give, and {host} "
        f"is none of them: leave these routes out, or give it as --extra-header {header}=…"
    )


def subject_of(target: Target) -> Subject:
    """Return what the doctor checks for a deployment."""
    name = target.route.name if not target.route.is_open else f"{target.authority}{target.path}".strip("/")
    return Subject(name=name, path=target.path, authority=target.authority, headers=target.headers)

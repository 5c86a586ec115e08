"""What the options of `emulate` take: roles, a pod, a URL, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from proxy.emulator import Limits, Pod, description
from proxy.emulator.limits import RANGES
from proxy.quoting import plain, quoted
from proxy.routes import parse_upstream

__all__ = ["DESCRIBED", "PORT", "limit_option", "read_grants", "read_https", "read_pod"]

PORT: Final = click.IntRange(0, 65535)
"""A port; 0 is a free one."""
_LIMITS: Final = ("concurrent_streams", "field_section_octets", "stream_window_octets", "connection_window_octets")
DESCRIBED: Final = (
    *("application", "url", "audiences", "invokers", "grants", "users", "pod", "token_lifetime"),
    *_LIMITS,
)
"""Parameters that `--config` replaces."""


def read_grants(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[description.GrantDescription, ...]:
    """Return what CALLER=TARGET[:ROLE] stands for, each time that it is given."""
    grants = []
    for value in values:
        caller, equals, rest = value.partition("=")
        target, colon, name = rest.partition(":")
        role = description.ROLES.get(name if colon else "tokenCreator")
        if not (caller and equals and target) or role is None:
            raise click.BadParameter(
                f"{quoted(value)} is not CALLER=TARGET (two e-mail addresses) or CALLER=TARGET:ROLE, with a ROLE of "
                f"{', '.join(description.ROLES)}."
            )
        grants.append(description.GrantDescription(caller, target, role))
    return tuple(grants)


def read_pod(context: click.Context, parameter: click.Parameter, value: str | None) -> Pod | None:
    """Return what NAMESPACE/NAME[=ACCOUNT] stands for."""
    if value is None:
        return None
    names, equals, account = value.partition("=")
    namespace, slash, name = names.partition("/")
    if not (namespace and slash and name) or (equals and not description.is_email(account)):
        raise click.BadParameter(f"{quoted(value)} is not NAMESPACE/NAME or NAMESPACE/NAME=ACCOUNT.")
    return Pod(namespace=namespace, name=name, annotation=account or None)


def read_https(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the value as clients write it in an audience: in lower case, without default port and slash."""
    if value is None:
        return None
    wrong = click.BadParameter(f"{quoted(value)} is not an https:// URL of a host, without a path.")
    if plain(value) is None:
        raise wrong
    try:
        origin, path = parse_upstream(value)
    except ValueError as exc:
        raise click.BadParameter(f"{exc}.") from None
    if origin.scheme != "https" or path:
        raise wrong
    return str(origin)


def limit_option(option: str, metavar: str, text: str) -> Callable[[Any], Any]:
    """Return the option for a limit of the front end, with its default and its range."""
    name = option.removeprefix("--").replace("-", "_")
    kind = click.IntRange(*RANGES[name])
    return click.option(
        option, type=kind, default=getattr(Limits(), name), show_default=True, metavar=metavar, help=text
    )

"""What the options of `emulate` take: roles, a pod, a URL, names, addresses, limits, a directory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, Final

import click

from proxy.cli.failures import CommandFailed, Unusable
from proxy.cli.redaction import redact
from proxy.emulator import CannotListen, Limits, Pod, bind, description
from proxy.emulator.limits import RANGES
from proxy.network.descriptors import descriptors_refusal
from proxy.quoting import plain, quoted
from proxy.routes import parse_upstream
from proxy.routes.locality import is_loopback

__all__ = [
    "PORT",
    "PORT_OPTIONS",
    "WholeNumber",
    "accounts_among",
    "check_descriptors",
    "check_host",
    "check_names",
    "check_ports",
    "limit_option",
    "read_grants",
    "read_https",
    "read_pod",
    "temporary_directory",
]


class WholeNumber(click.IntRange):
    """A whole number within a range; click calls it an integer range where it is none."""

    name = "whole number"


PORT: Final = WholeNumber(0, 65535)
"""A port; 0 is a free one."""
PORT_OPTIONS: Final = ("--cloud-run-port", "--metadata-port", "--tls-port")
"""The options that take a port."""


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
    if plain(value) is None or not value.lower().startswith("https://"):
        raise wrong
    try:
        origin, path = parse_upstream(value)
    except ValueError as exc:
        raise click.BadParameter(f"{exc}.") from None
    if path:
        raise wrong
    return str(origin)


def limit_option(option: str, metavar: str, text: str) -> Callable[[Any], Any]:
    """Return the option for a limit of the front end, with its default and its range."""
    name = option.removeprefix("--").replace("-", "_")
    kind = WholeNumber(*RANGES[name])
    return click.option(
        option, type=kind, default=getattr(Limits(), name), show_default=True, metavar=metavar, help=text
    )


def check_ports(ports: tuple[int, ...]) -> None:
    """Raise Unusable if two of the ports are the same."""
    for (one, port), (other, same) in itertools.combinations(zip(PORT_OPTIONS, ports, strict=True), 2):
        if port and port == same:
            raise Unusable(f"{one} and {other} have the same port, {port}; each needs its own")


def check_descriptors() -> None:
    """Raise Unusable if there are too few descriptors to serve."""
    if refused := descriptors_refusal():
        raise Unusable(refused)


def check_host(host: str, unsafe_listen: bool) -> None:
    """Raise CommandFailed if nothing can listen at this host, or if it is not safe."""
    try:
        bind(host, 0).close()
    except CannotListen as exc:
        raise CommandFailed(f"--host {quoted(host)} is no address of this machine: {exc.why}") from exc
    if not unsafe_listen and not is_loopback(host.strip("[]")):
        raise Unusable(f"{quoted(host)} is reachable from other machines; add --unsafe-listen if that is meant")


def check_names(members: tuple[str, ...], emails: tuple[str, ...]) -> None:
    """Raise Unusable with all members and e-mail addresses that are none."""
    neither = "is not an e-mail address, nor a member such as group:a@example.com"
    wrong = {name: neither for name in members if not description.is_member(name)}
    wrong |= {
        name: "is not an e-mail address" for name in emails if name not in wrong and not description.is_email(name)
    }
    if wrong:
        problems = [redact(f"{name!r} {why}", wrong) for name, why in wrong.items()]
        raise Unusable.listing("the arguments", problems) if len(problems) > 1 else Unusable(*problems)


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """Return a new directory, the default of --directory; as a context manager it is removed at the end.

    Raises Unusable.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-")
    except OSError as exc:
        # Its text may be a list of all folders that Python has tried.
        raise Unusable(
            "no temporary directory can be made on this machine; name one that can be written to with --directory, or "
            "mount a writable one at /tmp"
        ) from exc


def accounts_among(members: Iterable[str]) -> list[str]:
    """Return the e-mails of those members of a policy that may be accounts, which may have a key."""
    emails = (member.removeprefix("serviceAccount:") for member in members)
    return [email for email in emails if "@" in email and ":" not in email]

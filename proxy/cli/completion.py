"""Completion of route names, hosts, accounts and values, for click's shell completion.

The settings file is read without being validated: a file with a mistake completes what can be read of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from proxy.quoting import plain
from proxy.settings.layers import environment_name, read_file

__all__ = ["Complete", "complete_accounts", "complete_audiences", "complete_file", "complete_subjects", "one_of"]

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
"""Returns what an incomplete word may become."""

_IMPERSONATE: Final = "gcp_impersonate_service_account"
_DELEGATES: Final = "gcp_delegates"


def one_of(*values: str) -> Complete:
    """Return a completion with these values."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _items(values, incomplete)

    return complete


def complete_file(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell to complete the path of a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_subjects(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of routes, and the hosts that the lists name exactly; with a slash before if there is one."""
    document = _document(ctx)
    hosts = [host for host in _texts(_table(document, "deployments").get("hosts")) if "*" not in host]
    hosts += _words(ctx, "deployments_hosts")
    names = [*_table(document, "routes"), *(pair.partition("=")[0] for pair in _words(ctx, "route"))]
    slash = "/" if incomplete.startswith("/") else ""
    given = ctx.params.get(parameter.name or "") or ()
    return _items((slash + name for name in (*names, *hosts) if name not in given), incomplete)


def complete_accounts(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the accounts that the settings name."""
    document = _document(ctx)
    accounts = [*_texts(_table(document, "deployments").get("accounts")), *_words(ctx, "deployments_accounts")]
    for route in _table(document, "routes").values():
        if isinstance(route, dict):
            accounts += [*_texts([route.get(_IMPERSONATE)]), *_texts(route.get(_DELEGATES))]
    return _items(accounts, incomplete)


def complete_audiences(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the audiences that the lists name."""
    pairs = _texts(_table(_document(ctx), "deployments").get("audiences")) + _words(ctx, "deployments_audiences")
    return _items((pair.partition("=")[2] for pair in pairs), incomplete)


def _items(values: Iterable[str], incomplete: str) -> list[CompletionItem]:
    found = {value for value in values if value.startswith(incomplete) and plain(value) is not None}
    return [CompletionItem(value) for value in sorted(found) if value]


def _document(ctx: click.Context) -> dict[str, Any]:
    """Return the settings file that the command line names, or that would be found."""
    config = ctx.params.get("config")
    return read_file(Path(config) if config else None, os.environ).document


def _words(ctx: click.Context, setting: str) -> list[str]:
    """Return the words of a setting that is given by flag or in the environment."""
    flag = ctx.params.get(setting) or ()
    return [*flag, *os.environ.get(environment_name(setting), "").split()]


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _texts(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list | tuple) else []

"""The command of Restate's own CLI that does the same as a registration. Pure."""

from __future__ import annotations

import re
import shlex
from typing import Final

from proxy.deployments.target import Headers, may_be_secret
from proxy.routes.open_routes import FIELD_PREFIX

__all__ = ["DEFAULT_ADMIN_URL", "plain_command"]

DEFAULT_ADMIN_URL: Final = "http://127.0.0.1:9070"
"""Where Restate's CLI finds the admin API without being told, and so does `register`."""

_OWN: Final = FIELD_PREFIX.decode()


def plain_command(
    url: str,
    headers: Headers,
    *,
    admin_url: str,
    token_file: str | None = None,
    force: bool = False,
    breaking: bool = False,
    http1: bool = False,
    yes: bool = False,
) -> str:
    """Return the command as one line for a shell.

    The value of a header that may be a secret stands in a variable that is named after the header; without it the
    shell refuses the command. The token of the admin API is read from the same file, or from the same variable.
    """
    words = []
    if admin_url != DEFAULT_ADMIN_URL:
        words.append(f"RESTATE_ADMIN_URL={shlex.quote(admin_url)}")
    if token_file is not None:
        words.append(f'RESTATE_AUTH_TOKEN="$(cat {shlex.quote(token_file)})"')
    words += ["restate", "deployments", "register"]
    flags = (("--yes", yes), ("--force", force), ("--breaking", breaking), ("--use-http1.1", http1))
    words += [flag for flag, given in flags if given]
    words.append(shlex.quote(url))
    for name, value in headers:
        words += ["--extra-header", _header(name, value)]
    return " ".join(words)


def _header(name: str, value: str) -> str:
    # The sidecar's own headers have been compared with the lists: they hold accounts and audiences.
    if name.startswith(_OWN) or not may_be_secret(name, value):
        return shlex.quote(f"{name}={value}")
    variable = re.sub(r"[^A-Z0-9]", "_", name.upper())
    return f'"{name}=${{{variable}:?}}"'

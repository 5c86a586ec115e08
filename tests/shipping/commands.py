"""Parses the commands and variables of deployment files with the real command line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from proxy.cli.commands import commands
from proxy.cli.emulate import emulate
from proxy.cli.healthcheck import healthcheck

__all__ = ["REPOSITORY", "accepted", "read_yaml", "settings"]

REPOSITORY = Path(__file__).parents[2]

_COMMANDS: dict[str, click.Command] = {"emulate": emulate, "healthcheck": healthcheck}


def settings(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the settings of `cloudrun-sidecar serve …`, from the real command with only this environment."""
    assert arguments[0] == "serve", arguments
    done = subprocess.run(
        [sys.executable, "-m", "proxy", *arguments, "--print-config"],
        cwd=Path(__file__).parent,  # in the repository, a reader may have a config/routes.toml
        env=dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


def accepted(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options of `cloudrun-sidecar emulate …` or `… healthcheck …`, as its command line reads them."""
    # With the program's context as parent, because a command caches its help option from the first context.
    with commands.make_context("cloudrun-sidecar", ["--"], resilient_parsing=True) as program:
        context = _COMMANDS[arguments[0]].make_context(arguments[0], list(arguments[1:]), parent=program)
    return dict(context.params)


def read_yaml(name: str) -> list[Any]:
    """Return the documents of a YAML file of the repository."""
    return list(yaml.safe_load_all((REPOSITORY / name).read_text()))

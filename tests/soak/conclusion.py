"""How `python -m tests.soak` and `python -m tests.soak.cluster` end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

import click

__all__ = ["conclude"]


def conclude(lines: Iterable[str], wrong: Sequence[str]) -> NoReturn:
    """Print what happened and what is wrong; exit with code 1 if something is, with 0 otherwise."""
    for line in lines:
        click.echo(line)
    for sentence in wrong:
        click.echo(f"✘ {sentence}")
    click.echo(f"{len(wrong)} things are wrong" if wrong else "✔ all complete, all sums right")
    sys.exit(1 if wrong else 0)

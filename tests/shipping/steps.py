"""The output of the programs in this folder, and their error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["Wrong", "check", "step"]


class Wrong(Exception):
    """A check failed; the text says which."""


def check(holds: bool, otherwise: str) -> None:
    """Raise Wrong with the text unless the condition is true."""
    if not holds:
        raise Wrong(otherwise)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print a step, and how long it took."""
    began = time.monotonic()
    yield
    click.echo(f"   {click.style('✓', fg='green')} {what:<76} {time.monotonic() - began:5.1f} s")

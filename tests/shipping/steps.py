"""What the programs of this folder print, and how they fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["Wrong", "check", "step"]


class Wrong(Exception):
    """Something is not as it should be; the text says what."""


def check(holds: bool, otherwise: str) -> None:
    """Raise Wrong with the text unless it holds."""
    if not holds:
        raise Wrong(otherwise)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what was done, and how long it took."""
    began = time.monotonic()
    yield
    click.echo(f"   {click.style('✓', fg='green')} {what:<76} {time.monotonic() - began:5.1f} s")

"""Which program follows which part of the README, so that every command of it is run by one of them.

A block is followed whole, by one program; commands in prose and tables are followed one by one.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Iterable
from typing import Final

from tests.support.readme import Block, blocks, commands, inline_commands

__all__ = ["Stage", "assigned", "complete", "program_of", "stage_of", "within"]


class Stage(enum.Enum):
    """A program that follows the README, and which programs it knows how to have there."""

    PLAY = "tests.readme.play", ("make", "gcloud", "curl", "restate", "kubectl", ".venv/bin/cloudrun-sidecar")
    """Without a network, in `make test`."""
    INSTALL = "tests.readme.install", ("python3", "install", "systemctl")
    """As root of a machine, in `make test`."""
    IMAGE = "tests.shipping.image", ("docker", "export", "gcloud", "curl")
    """`make image`."""
    TARGETS = "tests.readme.targets", ("make",)
    """`make readme`: the targets that take minutes, or would disturb who runs them."""

    def __init__(self, module: str, programs: tuple[str, ...]) -> None:
        self.module = module
        self.programs = programs


LONG: Final = frozenset(
    f"make {target}" for target in ("bench", "check", "clean", "dist", "image", "lock", "profile", "readme", "test")
)
MEANT: Final = (
    ("cloudrun-sidecar ", ".venv/bin/cloudrun-sidecar "),
    ("gcloud run services update … ", "gcloud run services update greeter --region europe-west1 "),
)
"""What the beginning of a command in prose leaves out, because it stands in a block already."""


def complete(command: str) -> str:
    """Return what is typed for a command in prose."""
    for short, long in MEANT:
        if command.startswith(short):
            return long + command.removeprefix(short)
    return command


def program_of(command: str) -> str:
    """Return the program that a command runs."""
    return shlex.split(command)[0]


def stage_of(item: Block | str) -> Stage:
    """Return who follows a console block, or a command in prose."""
    every = list(commands(item)) if isinstance(item, Block) else [complete(item)]
    programs = {program_of(command) for command in every}
    if "docker" in programs:
        return Stage.IMAGE
    if "systemctl" in programs:
        return Stage.INSTALL
    return Stage.TARGETS if LONG.issuperset(every) else Stage.PLAY


def within(stage: Stage) -> list[Block]:
    """Return the console blocks that a program follows."""
    return [block for block in blocks() if block.language == "console" and stage_of(block) is stage]


def assigned(stage: Stage) -> list[str]:
    """Return the commands that a program has to run: those of its blocks, then those in prose, as they stand there."""
    shown: Iterable[str] = (command for block in within(stage) for command in commands(block))
    return [*shown, *(command for command in inline_commands() if stage_of(command) is stage)]

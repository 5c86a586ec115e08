"""Which test program runs which commands of the README, so that each command is run once.

One program runs all commands of a block. Commands in prose and tables are assigned one by one.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Iterable
from typing import Final

from tests.support.readme import Block, blocks, commands, inline_commands

__all__ = ["Stage", "assigned", "complete", "program_of", "stage_of", "within"]


class Stage(enum.Enum):
    """A test program that runs commands of the README, and the commands that it can run."""

    PLAY = (
        "tests.readme.play",
        (
            "make",
            "gcloud",
            "curl",
            "restate",
            "kubectl",
            "eval",
            ".venv/bin/cloudrun-sidecar",
        ),
    )
    """Without a network, in `make test`."""
    INSTALL = "tests.readme.install", ("python3", "install", "systemctl")
    """As root, in `make test`."""
    IMAGE = "tests.shipping.image", ("docker", "export", "gcloud", "curl")
    """`make image`."""
    TARGETS = "tests.readme.targets", ("make",)
    """`make readme`: the targets that take minutes, or would change the working copy."""

    def __init__(self, module: str, programs: tuple[str, ...]) -> None:
        self.module = module
        self.programs = programs


LONG: Final = frozenset(
    f"make {target}"
    for target in (
        "bench", "check", "clean", "cluster", "coverage", "dist", "fuzz", "image", "lock", "oldest", "profile",
        "readme", "release-check", "soak", "test", "wheels",
    )
)  # fmt: skip
MEANT: Final = (
    ("cloudrun-sidecar ", ".venv/bin/cloudrun-sidecar "),
    (
        "restate deployments remove ID",
        "restate deployments remove --yes --force "
        "$(curl -s http://127.0.0.1:9070/deployments | grep -o 'dp_[A-Za-z0-9]*' | head -n 1)",
    ),
    ("gcloud run services update … ", "gcloud run services update greeter --region europe-west1 "),
)
"""The abbreviated beginnings of commands in prose, and the complete ones, as in the blocks."""


def complete(command: str) -> str:
    """Return the complete command for one in prose."""
    for short, long in MEANT:
        if command.startswith(short):
            return long + command.removeprefix(short)
    return command


def program_of(command: str) -> str:
    """Return the program that a command runs."""
    return shlex.split(command)[0]


def stage_of(item: Block | str) -> Stage:
    """Return the stage that runs a console block, or a command in prose."""
    every = list(commands(item)) if isinstance(item, Block) else [complete(item)]
    programs = {program_of(command) for command in every}
    if "docker" in programs:
        return Stage.IMAGE
    if "systemctl" in programs:
        return Stage.INSTALL
    return Stage.TARGETS if LONG.issuperset(every) else Stage.PLAY


def within(stage: Stage) -> list[Block]:
    """Return the console blocks of a stage."""
    return [block for block in blocks() if block.language == "console" and stage_of(block) is stage]


def assigned(stage: Stage) -> list[str]:
    """Return the commands of a stage: those of its blocks, then those in prose, as written."""
    shown: Iterable[str] = (command for block in within(stage) for command in commands(block))
    return [*shown, *(command for command in inline_commands() if stage_of(command) is stage)]

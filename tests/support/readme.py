"""The README as a program reads it: its blocks, commands, links and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["REPOSITORY", "TEXT", "Block", "anchors", "blocks", "commands", "inline_commands", "links"]

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "README.md").read_text("utf-8")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")
_PROGRAM_AND_MORE = re.compile(r"[a-z.~/][\w.~/-]*\s+\S")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    language: str
    text: str


def blocks(text: str = TEXT) -> list[Block]:
    """Return the fenced blocks in order."""
    return [Block(language, content) for language, content in _BLOCK.findall(text)]


def commands(block: Block) -> Iterator[str]:
    """Yield the commands of a console block, lines that end in a backslash joined; `# ` is root's prompt."""
    lines = iter(block.text.splitlines())
    for line in lines:
        if not line.startswith(("$ ", "# ")):
            continue
        command = line[2:]
        while command.endswith("\\"):
            command = command[:-1].rstrip() + " " + next(lines).strip()
        yield command


def inline_commands(text: str = TEXT) -> list[str]:
    """Return the commands in prose and tables, each once: code of two words or more, the first like a program."""
    spans = (" ".join(span.split()) for span in _SPAN.findall(_BLOCK.sub("", text)))
    return list(dict.fromkeys(span for span in spans if _PROGRAM_AND_MORE.match(span)))


def links(text: str = TEXT) -> list[str]:
    """Return what the links lead to."""
    return _LINK.findall(_BLOCK.sub("", text))


def anchors(text: str = TEXT) -> set[str]:
    """Return what `#…` links can lead to: headings as GitHub turns them into identifiers."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

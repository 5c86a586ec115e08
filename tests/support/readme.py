"""The README and the pages of docs/ as a program reads them: their blocks, commands, links and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "REPOSITORY", "TEXT", "Block", "anchors", "blocks", "commands", "inline_commands", "links", "parts"]

REPOSITORY = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PART = re.compile(rf"{_BLOCK.pattern}|`([^`]+)`", _BLOCK.flags)
_PROGRAM_AND_MORE = re.compile(r"[a-z.~/][\w.~/-]*\s+\S")
_PAGE = re.compile(r"\]\((docs/[a-z]+\.md)\)")


def _pages() -> dict[str, str]:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    named = _PAGE.findall(readme.partition("\n## Pages\n")[2])
    return {"README.md": readme} | {page: (REPOSITORY / page).read_text("utf-8") for page in named}


PAGES = _pages()
"""Path in the repository → text, in the order of reading: the README, then the pages of its table."""
TEXT = "\n".join(PAGES.values())
"""All pages, one after the other."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    language: str
    text: str


def parts(text: str = TEXT) -> Iterator[Block | str]:
    """Yield, in order, the fenced blocks, and the commands in prose and tables.

    Such a command is code of two words or more, the first of which is like a program.
    """
    for language, content, code in _PART.findall(text):
        if not code:
            yield Block(language, content)
        elif _PROGRAM_AND_MORE.match(code):
            yield " ".join(code.split())


def blocks(text: str = TEXT) -> list[Block]:
    """Return the fenced blocks in order."""
    return [part for part in parts(text) if isinstance(part, Block)]


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
    """Return the commands in prose and tables, each once, where it stands first."""
    return list(dict.fromkeys(part for part in parts(text) if isinstance(part, str)))


def links(text: str = TEXT) -> list[str]:
    """Return what the links lead to."""
    return _LINK.findall(_BLOCK.sub("", text))


def anchors(text: str = TEXT) -> set[str]:
    """Return what `#…` links can lead to: headings as GitHub turns them into identifiers."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

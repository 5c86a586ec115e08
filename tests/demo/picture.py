"""`python -m tests.demo.picture`: run the demo in a terminal, and draw what it shows into docs/demo.svg."""

from __future__ import annotations

import os
import pty
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

__all__ = ["PICTURE", "main", "picture"]

PICTURE: Final = Path(__file__).resolve().parents[2] / "docs/demo.svg"
COMMAND: Final = "make demo ONCE=1"

_COLUMN, _ROW, _MARGIN = 7.83, 19, 18
"""Sizes in pixels. The width of a character is that of most monospace fonts at 13 px."""
_CLASSES: Final = {"1": "b", "31": "r", "32": "g", "33": "y"}
"""Of the colours that the demo uses (SGR, ECMA-48): bold, red, green, yellow."""
_STYLE: Final = (
    "text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d6d9e0;"
    "white-space:pre}.b{font-weight:bold;fill:#fff}.g{fill:#7fd88f}.r{fill:#ff8a80}.y{fill:#ffd479}.p{fill:#8ab4f8}"
)


def picture(shown: str) -> str:
    """Return the SVG of a terminal with this output, of which colours and line ends are understood."""
    lines = [f'<tspan class="p">$ </tspan><tspan class="b">{COMMAND}</tspan>']
    lines += ["".join(_spans(line)) for line in shown.replace("\r", "").rstrip("\n").split("\n")]
    columns = max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in shown.split("\n"))
    width, height = round(2 * _MARGIN + columns * _COLUMN), 2 * _MARGIN + len(lines) * _ROW
    rows = (
        f'<text x="{_MARGIN}" y="{_MARGIN + (number + 1) * _ROW - 5}" xml:space="preserve">{line}</text>\n'
        for number, line in enumerate(lines)
        if line
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="What {COMMAND} prints">\n<style>{_STYLE}</style>\n'
        f'<rect width="{width}" height="{height}" rx="10" fill="#1e2230"/>\n{"".join(rows)}</svg>\n'
    )


def _spans(line: str) -> Iterator[str]:
    style = ""
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        if piece.startswith("\x1b"):
            style = _CLASSES.get(piece[2:-1], "")
        elif piece:
            yield f'<tspan class="{style}">{escape(piece)}</tspan>' if style else escape(piece)


def main() -> int:
    """Write the picture; return the demo's exit code."""
    shown = bytearray()

    def read(descriptor: int) -> bytes:
        octets = os.read(descriptor, 1024)
        shown.extend(octets)
        return octets

    status = os.waitstatus_to_exitcode(pty.spawn([sys.executable, "-m", "tests.demo", "--once"], read))
    if status == 0:
        PICTURE.write_text(picture(shown.decode().lstrip("\r\n")))
    return status


if __name__ == "__main__":
    sys.exit(main())

"""The page about the emulator: its example in Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "emulator.md"


def test_the_example_in_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    exec(compile(example, str(PAGE), "exec"), {"__name__": "example"})
    places, streams = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"GCE_METADATA_HOST=127\.0\.0\.1:\d+ SSL_CERT_FILE=/\S+ URL=https://127\.0\.0\.1:\d+", places)
    assert streams == "[]"

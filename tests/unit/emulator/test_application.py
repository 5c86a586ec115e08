"""`cloudrun-sidecar emulate --app`: applications that cannot be served."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli.commands import commands


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('boom')\n", "fails when it is imported, as shown above\n"),
        ("raise SystemExit(3)\n", "fails when it is imported, as shown above\n"),
        ("def app(environ, start_response):\n    return []\n", "'app' of the module 'unserved' is no ASGI application"),
        ("class app:\n    def __call__(self, environ, start):\n        return []\n", "is no ASGI application"),
    ],
)
def test_an_application_that_cannot_be_served_is_reported_in_a_sentence(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unserved.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "unserved", raising=False)
    result = CliRunner().invoke(commands, ["emulate", "--app", "unserved:app"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr.rpartition("cloudrun-sidecar: --app: ")[2]
    assert ("boom" in result.stderr) == ("boom" in text)  # where it fails, is shown

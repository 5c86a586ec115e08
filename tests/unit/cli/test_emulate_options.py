"""What `emulate` uses where an option is not given."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from proxy.cli.emulate_options import temporary_directory
from proxy.cli.failures import Unusable


def test_a_temporary_directory_is_removed_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_directory() as folder:
        assert Path(folder).parent == tmp_path
    assert not Path(folder).exists()


def test_where_none_can_be_made_the_option_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(Unusable) as caught:
        temporary_directory()
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("no temporary directory can be made")
    assert "--directory" in str(caught.value)


def test_a_low_limit_on_open_files_is_named_before_anything_is_opened() -> None:
    program = ["prlimit", "--nofile=13:13", sys.executable, "-m", "proxy", "emulate"]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    said = "the limit of open files is 13, and 32 are the least: raise it (ulimit -n, LimitNOFILE)"
    assert (ran.returncode, ran.stderr) == (2, f"cloudrun-sidecar: {said}\n")

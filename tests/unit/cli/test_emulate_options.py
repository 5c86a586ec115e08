"""What `emulate` uses where an option is not given."""

from __future__ import annotations

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

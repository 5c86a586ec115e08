from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from proxy.emulator import Certificates
from proxy.network.authorities import named_file_problem, state_of_authorities, trusts_none


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path that SSL_CERT_FILE names. There is nothing at it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


def test_a_missing_file_is_named(file: Path) -> None:
    said = named_file_problem()
    assert str(file) in said
    assert "No such file" in said
    file.touch()
    assert named_file_problem() == ""


def test_a_named_pipe_is_a_problem_and_is_not_opened(file: Path) -> None:
    os.mkfifo(file)
    assert "it is not a regular file" in named_file_problem()


def test_the_file_of_the_system_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert named_file_problem() == ""
    assert state_of_authorities() == state_of_authorities()


def test_a_file_that_comes_is_written_to_or_is_replaced_has_another_state(file: Path, tmp_path: Path) -> None:
    states = [state_of_authorities()]
    assert states[0][0] == ()
    file.write_text("some")
    states.append(state_of_authorities())
    assert state_of_authorities() == states[-1]
    file.write_text("more of it")
    states.append(state_of_authorities())
    (tmp_path / "new").write_text("more of it")
    (tmp_path / "new").replace(file)
    states.append(state_of_authorities())
    assert len(set(states)) == 4


def test_a_directory_that_gets_or_loses_an_authority_has_another_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("SSL_CERT_DIR", f"{first}:{second}")
    states = [state_of_authorities()]
    second.mkdir()
    states.append(state_of_authorities())
    (second / "0a1b2c3d.0").touch()
    states.append(state_of_authorities())
    (second / "0a1b2c3d.0").rename(second / "0a1b2c3d.1")
    states.append(state_of_authorities())
    assert len(set(states)) == 4


def test_other_files_count_too(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    before = state_of_authorities(other)
    other.touch()
    assert state_of_authorities(other) != before


def test_a_context_trusts_none_unless_the_file_or_a_directory_has_an_authority(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'nowhere'}:{tmp_path / 'there'}")
    assert trusts_none(ssl.create_default_context())
    (tmp_path / "there").mkdir()
    assert trusts_none(ssl.create_default_context())
    file.write_text(Certificates.create(tmp_path / "ca").ca_file.read_text())
    assert not trusts_none(ssl.create_default_context())
    file.unlink()
    (tmp_path / "there" / "0a1b2c3d.0").touch()
    assert not trusts_none(ssl.create_default_context())

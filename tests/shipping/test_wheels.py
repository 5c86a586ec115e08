"""Builds repeat to the octet, and wheels name what they contain; `make wheels` builds and tries the compiled ones."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.shipping.dist import REPOSITORY, built, commit_time, tracked
from tests.shipping.steps import Wrong
from tests.shipping.wheels import contents, interpreters, locked, repaired

BUILDER = REPOSITORY / ".ci/nghttp2"


def twice(hook: str, folder: Path) -> tuple[Path, Path]:
    """Build in two folders, at different times; without compiled modules, which `make wheels ARGS=--twice` compares."""
    made = []
    for name in ("first", "a-second-folder"):
        tree = tracked(folder / name)
        (tree / "README.md").touch()
        made.append(built(hook, tree, folder / name, environment={"CLOUDRUN_SIDECAR_BUILD": "none"}))
    assert made[0].name == made[1].name
    return made[0], made[1]


def test_the_same_commit_gives_the_same_wheel_in_any_folder(tmp_path: Path) -> None:
    first, second = twice("build_wheel", tmp_path)
    assert first.read_bytes() == second.read_bytes()


def test_the_same_commit_gives_the_same_source_distribution_in_any_folder(tmp_path: Path) -> None:
    first, second = twice("build_sdist", tmp_path)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        members = archive.getmembers()
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname) for one in members} == {(commit_time(), 0, 0, "", "")}
    assert {one.mode for one in members} == {0o644, 0o755}


def test_everything_in_a_wheel_with_the_library_has_the_time_of_the_commit(tmp_path: Path) -> None:
    (module,) = (REPOSITORY / "proxy/http2/nghttp2").glob("engine.*.so")
    wheel = tmp_path / f"a-0-cp3{sys.version_info.minor}-cp3{sys.version_info.minor}-linux_{platform.machine()}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(module, module.name)
        archive.writestr("a-0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {wheel.stem.partition('-0-')[2]}\n")
        archive.writestr("a-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: a\nVersion: 0\n")
        archive.writestr("a-0.dist-info/RECORD", f"{module.name},,\n")
    (tmp_path / "made").mkdir()
    members = zipfile.ZipFile(repaired(wheel, tmp_path / "made")).infolist()
    assert any("a.libs/libnghttp2" in one.filename for one in members)
    committed = time.gmtime(commit_time() & ~1)  # a ZIP file counts two seconds as one
    assert {one.date_time for one in members} == {committed[:6]}


def test_this_python_can_build_wheels() -> None:
    minor = sys.version_info.minor
    assert minor in interpreters()


def test_the_build_tools_are_those_of_the_lock_file() -> None:
    entries = locked("cython", "setuptools")
    assert re.findall(r"^(\S+)==", entries, re.MULTILINE) == ["cython", "setuptools"]
    assert entries.count("--hash=sha256:") >= 4
    with pytest.raises(Wrong, match=r"requirements-dev\.lock lacks one of cython, no-such-package"):
        locked("cython", "no-such-package")


def test_a_source_of_libnghttp2_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nghttp2").write_text(BUILDER.read_text().replace("/usr/lib/apt/apt-helper", "/nonexistent"))
    (tmp_path / "curl").write_text('#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\necho other > "$2"\n')
    (tmp_path / "curl").chmod(0o755)
    done = subprocess.run(
        ["bash", tmp_path / "nghttp2", tmp_path / "library"],
        cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(
        r"libnghttp2 \S+ \(SHA-256 [0-9a-f]{64}\) cannot be had from \S+ or \S+; see \.ci/nghttp2", done.stderr
    )
    assert not list((tmp_path / "library").iterdir())
    assert not (tmp_path / "LICENSE.libnghttp2").exists()


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("cloudrun_sidecar.libs/libnghttp2-1.so.14", r"the wheel has \['cloudrun_sidecar-0\.dist-info', 'proxy'\]"),
        ("proxy/relay/exchange.cpython-311-x86_64-linux-gnu.so", "proxy/relay/exchange is not compiled"),
        (None, None),
    ],
)
def test_an_incomplete_wheel_is_reported(missing: str | None, error: str | None, tmp_path: Path) -> None:
    modules = ("proxy/http2/nghttp2/engine", "proxy/http2/engine", "proxy/relay/exchange")
    files = {f"{module}.cpython-311-x86_64-linux-gnu.so" for module in modules}
    files |= {"cloudrun_sidecar.libs/libnghttp2-1.so.14", "cloudrun_sidecar-0.dist-info/licenses/LICENSE.libnghttp2"}
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in files - {missing}:
            wheel.writestr(name, "Wheels of cloudrun-sidecar contain libnghttp2 1.0, unchanged")
    if error is None:
        contents(tmp_path / "a.whl")
    else:
        with pytest.raises(Wrong, match=error):
            contents(tmp_path / "a.whl")

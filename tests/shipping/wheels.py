"""`python -m tests.shipping.wheels`: build wheels with libnghttp2 inside for the Pythons of this machine, and try them.

Each wheel is installed into an empty environment without a compiler, and serves a request there with the library in it:
the system's is hidden if this is root, and must not be mapped in any case. What has passed is left in `dist/`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click

from tests.shipping.dist import (
    COMPILED,
    NO_COMPILER,
    REPOSITORY,
    built,
    commit_time,
    held_by_wheel,
    installed,
    run,
    tracked,
    tried,
)
from tests.shipping.steps import Wrong, check, step
from tests.support.processes import ProgramFailed

__all__ = ["hiding", "interpreters", "locked", "repaired", "wheel_of"]

MINORS: Final = (11, 12, 13, 14)
PLACES: Final = (".pyenv/versions/3.{minor}.*/bin/python", ".local/share/uv/python/cpython-3.{minor}.*/bin/python3")
"""Where pyenv and uv keep interpreters, below the home directory."""
USABLE: Final = """\
import ensurepip, os, sys, sysconfig
sys.exit(sys.version_info[:2] != (3, {minor}) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
"""
LIBRARY: Final = Path("build/libnghttp2")
"""Where `.ci/nghttp2` installs libnghttp2, below the folder of a build: a wheel shall not depend on that folder."""
ENVIRONMENT: Final = {
    "CFLAGS": f"-I{LIBRARY}/include",
    "LDFLAGS": f"-L{LIBRARY}/lib",
    # Otherwise pkg-config would name the system's library.
    "PKG_CONFIG_LIBDIR": f"{LIBRARY}/lib/pkgconfig",
}
"""What makes the build take that libnghttp2."""


def interpreters() -> dict[int, Path]:
    """Return the Pythons of this machine that can build: minor version → interpreter."""
    found: dict[int, Path] = {}
    for minor in MINORS:
        named = shutil.which(f"python3.{minor}")
        kept = [path for place in PLACES for path in sorted(Path.home().glob(place.format(minor=minor)))]
        for candidate in [*([Path(named)] if named else []), *kept]:
            done = subprocess.run([candidate, "-c", USABLE.format(minor=minor)], capture_output=True, check=False)
            if done.returncode == 0:
                found.setdefault(minor, candidate)
    return found


def locked(*names: str) -> str:
    """Return the entries of packages in the developers' lock file."""
    entries = (REPOSITORY / "requirements-dev.lock").read_text().replace("\\\n", "\0").splitlines()
    chosen = [entry.replace("\0", "\\\n") for entry in entries if entry.partition("==")[0] in names]
    check(len(chosen) == len(names), f"requirements-dev.lock lacks one of {', '.join(names)}")
    return "\n".join(chosen) + "\n"


def wheel_of(python: Path, folder: Path) -> Path:
    """Build a wheel in `folder` with the locked build tools, not repaired yet."""
    tree = tracked(folder)
    run(tree / ".ci/nghttp2", REPOSITORY / LIBRARY, cwd=tree)
    shutil.copytree(REPOSITORY / LIBRARY, tree / LIBRARY, symlinks=True)
    tools = folder / "tools"
    run(python, "-m", "venv", tools)
    (folder / "tools.lock").write_text(locked("cython", "setuptools"))
    pip = (tools / "bin/python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--require-hashes", "--only-binary", ":all:", "--requirement", folder / "tools.lock")
    return built("build_wheel", tree, folder, tools / "bin/python", ENVIRONMENT)


def repaired(wheel: Path, folder: Path) -> Path:
    """Put libnghttp2 into a wheel, and return the new one, whose tag names the oldest C library that it runs with."""
    tools = Path(sys.executable).parent
    variables = {
        "LD_LIBRARY_PATH": f"{REPOSITORY / LIBRARY}/lib",
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SOURCE_DATE_EPOCH": str(commit_time()),
    }
    run(tools / "auditwheel", "repair", "--wheel-dir", folder, wheel, environment=variables)
    (made,) = folder.glob("*.whl")
    return made


def contents(wheel: Path) -> None:
    """Check that a wheel has the library, and license and version of it."""
    held_by_wheel(wheel, "cloudrun_sidecar.libs")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    libraries = [name for name in names if name.startswith("cloudrun_sidecar.libs/")]
    check(len(libraries) == 1 and "libnghttp2" in libraries[0], f"the wheel brings {libraries}")
    (license_file,) = [name for name in names if name.endswith("/licenses/LICENSE.libnghttp2")]
    check(b"libnghttp2 " in zipfile.ZipFile(wheel).read(license_file), f"{license_file} does not name the library")


def hiding() -> list[str]:
    """Return a command that runs another without the system's libnghttp2; nothing if this is not root."""
    libraries = [path for place in ("/usr/lib", "/lib") for path in Path(place).glob("**/libnghttp2.so*")]
    there = sorted({str(path.resolve()) for path in libraries})
    if os.geteuid() != 0 or not there:
        return []
    hide = "".join(f"mount --bind /dev/null {path} && " for path in there)
    return ["unshare", "--mount", "sh", "-c", f'{hide} exec "$@"', "sh"]


def serves(wheel: Path, python: Path, place: Path) -> None:
    """Install a wheel into a new environment without a compiler, and have it serve a request with its own library."""
    installed(wheel, place, NO_COMPILER, "--only-binary", ":all:", python=python)
    libraries = {path for path in asyncio.run(tried(place, COMPILED, hiding())) if "libnghttp2" in path.name}
    foreign = {str(path) for path in libraries if place.resolve() not in path.resolve().parents}
    check(bool(libraries) and not foreign, f"libnghttp2 is not the wheel's: {foreign or 'none is loaded'}")


def make(pythons: Sequence[tuple[int, Path]], folder: Path, twice: bool) -> Iterator[Path]:
    """Yield a wheel for each Python, once it has been tried."""
    for minor, python in pythons:
        made = []
        for attempt in range(2 if twice else 1):
            place = folder / f"3.{minor}-{attempt}"
            (place / "repaired").mkdir(parents=True)
            with step(f"build a wheel for Python 3.{minor}{', in another folder' * attempt}"):
                made.append(repaired(wheel_of(python, place), place / "repaired"))
                contents(made[-1])
        check(len({wheel.read_bytes() for wheel in made}) == 1, f"{made[0].name} was built twice and differs")
        with step(f"install it and serve a request, without a compiler and the system's {COMPILED.strip()}"):
            serves(made[0], python, folder / f"3.{minor}-environment")
        yield made[0]


@click.command()
@click.option("--python", "only", multiple=True, type=int, help="Minor version of a Python to build for; default: all.")
@click.option("--twice", is_flag=True, help="Build each wheel twice, in different folders, and compare.")
def main(only: tuple[int, ...], twice: bool) -> None:
    """Build and try wheels for the Pythons of this machine: of PATH, pyenv and uv."""
    os.umask(0o022)
    kept = REPOSITORY / "dist"
    kept.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="cloudrun-sidecar-wheels-") as name:
        try:
            found = {minor: python for minor, python in interpreters().items() if not only or minor in only}
            check(bool(found), "no Python with headers and pip was found; pyenv and uv install them")
            for wheel in make(sorted(found.items()), Path(name), twice):
                shutil.copy2(wheel, kept)
                click.echo(f"     dist/{wheel.name}\n     sha256 {sha256(wheel.read_bytes()).hexdigest()}")
        except (ProgramFailed, Wrong) as exc:
            click.echo(f"\n{click.style('failed:', fg='red')} {exc}", err=True)
            sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m tests.shipping.wheels")

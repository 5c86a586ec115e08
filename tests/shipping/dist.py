"""`python -m tests.shipping.dist`: install source distribution and wheel, each in an empty environment, and run them.

The source distribution is installed twice, with a C compiler and without one. What has passed is left in `dist/`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import click

from tests.shipping.steps import Wrong, check, step
from tests.support.processes import ProgramFailed, program

REPOSITORY = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
NO_COMPILER = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
COMPILED, PORTABLE = "libnghttp2 ", "h2 "


def main(folder: Path) -> None:
    """Build into `folder`, install, try; raises Wrong, ProgramFailed or CalledProcessError."""
    tree = tracked(folder)
    with step("build the source distribution"):
        source = built("build_sdist", tree, folder)
        held_by_source(source, tree)
    with step("build the wheel"):
        wheel = built("build_wheel", tree, folder)
        held_by_wheel(wheel)
    for what, artifact, environment, engine in (
        ("the source distribution, with a compiler", source, {}, COMPILED),
        ("the source distribution, without a compiler", source, NO_COMPILER, PORTABLE),
        ("the wheel, without a compiler", wheel, NO_COMPILER, COMPILED),
    ):
        with step(f"install {what}"):
            place = folder / "-".join(what.split()[1:]).replace(",", "")
            installed(artifact, place, environment)
        with step(f"serve a request with {engine.strip()}"):
            asyncio.run(tried(place, engine))
    kept = REPOSITORY / "dist"
    kept.mkdir(exist_ok=True)
    for artifact in (source, wheel):
        shutil.copy2(artifact, kept)
        click.echo(f"     dist/{artifact.name}")


def tracked(folder: Path) -> Path:
    """Return a folder in `folder` with all versioned files of the repository."""
    tree = folder / "tree"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
    for name in filter(None, files.decode().split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, tree / name)
        # A wheel has the permissions of its files: they shall not depend on this user's umask.
        (tree / name).chmod(0o755 if os.access(tree / name, os.X_OK) else 0o644)
    return tree


def source_distribution(folder: Path) -> Path:
    """Build only the source distribution into `folder`, and return it. Raises Wrong."""
    with TemporaryDirectory(prefix="cloudrun-sidecar-source-") as name:
        return built("build_sdist", tracked(Path(name)), folder)


def commit_time() -> int:
    """Return when the last commit was made, in seconds since 1970: the time of everything in a distribution."""
    return int(run("git", "log", "-1", "--format=%ct", cwd=REPOSITORY))


def built(
    hook: str,
    tree: Path,
    folder: Path,
    python: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Build with the build system's own hook, as of the last commit, and return the file."""
    variables = {"SOURCE_DATE_EPOCH": str(commit_time()), **(environment or {})}
    return folder / run(python, "-c", BUILD, hook, folder, cwd=tree, environment=variables).splitlines()[-1]


def held_by_source(source: Path, tree: Path) -> None:
    """Check that the source distribution has all sources of the engine, and nothing compiled."""
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {str(path.relative_to(tree)) for path in tree.glob("proxy/**/*.p[xy]*")}
    needed |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "proxy/py.typed"}
    check(needed <= names, f"the source distribution lacks {sorted(needed - names)}")
    foreign = [name for name in names if name.endswith((".so", ".c", ".pyc"))]
    check(not foreign, f"the source distribution has {foreign}")


def held_by_wheel(wheel: Path, *others: str) -> None:
    """Check that the wheel has only the package and these folders, with compiled modules and without their sources."""
    names = zipfile.ZipFile(wheel).namelist()
    for module in ("proxy/http2/nghttp2/engine", "proxy/http2/engine", "proxy/relay/exchange"):
        check(
            any(name.startswith(f"{module}.") and name.endswith(".so") for name in names), f"{module} is not compiled"
        )
    roots = {name.partition("/")[0] for name in names}
    information = {root for root in roots if root.endswith(".dist-info")}
    check(len(information) == 1 and roots - information == {"proxy", *others}, f"the wheel has {sorted(roots)}")
    sources = [name for name in names if name.endswith((".pyx", ".pxi", ".pxd", ".c"))]
    check(not sources, f"the wheel has {sources}")


def installed(
    artifact: Path, place: Path, environment: Mapping[str, str], *flags: str, python: str | Path = sys.executable
) -> None:
    """Install a file and its dependencies into a new virtual environment."""
    run(python, "-m", "venv", place)
    pip = (place / "bin/python", "-m", "pip", "--disable-pip-version-check")
    run(
        *pip, "install", "--no-cache-dir", *flags, "--constraint", constraints(place), artifact, environment=environment
    )
    run(*pip, "check")


def constraints(place: Path) -> Path:
    """Write the versions of the lock file as constraints, so that new releases do not break the test."""
    lock = (REPOSITORY / "requirements.lock").read_text().splitlines()
    file = place / "constraints.txt"
    file.write_text("".join(line.removesuffix("\\").rstrip() + "\n" for line in lock if "==" in line))
    return file


async def tried(place: Path, engine: str, before: Sequence[str] = ()) -> set[Path]:
    """Run the installed emulator and sidecar; the emulated service requires a valid token.

    `before` is a command that runs the command behind it. Returns the files that the sidecar's process has mapped.
    """
    command = place / "bin/cloudrun-sidecar"
    emulate: list[str | Path] = [*before, command, "emulate", "--json", "--directory", place / "google"]
    async with program("emulate", emulate) as google:
        places = json.loads((await google.line(r"^\{.*\}$"))[0])
        flags = ["--upstream", places["cloud_run"], "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        argv: list[str | Path] = [*before, command, "serve", "--log-format", "json", *flags]
        async with program("serve", argv, env=places["environment"]) as sidecar, aiohttp.ClientSession() as http:
            said = json.loads((await sidecar.line(r'^\{.*"listening".*$'))[0])
            check(said["engine"].startswith(engine), f"the engine is {said['engine']}")
            async with http.get(f"http://{said['listen'][0]}/hello") as response:
                check(response.status == 200, f"{response.status} {await response.text()}")
                claims = (await response.json())["claims"]
            check(claims["aud"] == places["audience"], f"the token is {claims}")
            run(command, "healthcheck", "--admin", said["admin"])
            return mapped(sidecar.pid)


def mapped(supervisor: int) -> set[Path]:
    """Return the files that a process and its children have mapped."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    lines = [line for pid in (supervisor, *children) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {Path(words[5]) for words in map(str.split, lines) if len(words) > 5 and words[5].startswith("/")}


def run(*argv: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output. Raises Wrong with the end of the output if it fails."""
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(
        argv, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    tail = "\n".join(done.stdout.splitlines()[-25:])
    check(done.returncode == 0, f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{tail}")
    return done.stdout


if __name__ == "__main__":
    with TemporaryDirectory(prefix="cloudrun-sidecar-dist-") as name:
        try:
            main(Path(name))
        except (ProgramFailed, Wrong) as exc:
            click.echo(f"\n{click.style('failed:', fg='red')} {exc}", err=True)
            sys.exit(1)

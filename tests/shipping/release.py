"""`python -m tests.shipping.release`: make all files of a release in `dist/`, and check what they are made of.

First come the checks that take seconds, and everything that is wrong is reported at once: clean tree, version, tag,
changelog, lock files. Then source distribution, wheels, image (root, with buildah), bill of materials and checksums are
made and tried. `--rehearsal` does so for a version that is not released yet. Nothing is published.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click

from proxy import __version__
from tests.shipping.dist import REPOSITORY, run
from tests.shipping.steps import Wrong, check, step

__all__ = ["checksums", "problems_of_changelog", "problems_of_commit", "problems_of_locks"]

RELEASED: Final = r"\d+\.\d+\.\d+"
"""What a version that is released looks like."""
LOCKS: Final = ("requirements.lock", "requirements-dev.lock")


def problems_of_commit(repository: Path, version: str) -> Iterator[str]:
    """Yield what forbids to release the commit that is checked out in a repository as this version."""
    if changed := run("git", "status", "--porcelain", cwd=repository).splitlines():
        yield f"these files are not as committed: {', '.join(line[3:] for line in changed[:10])}"
    if not re.fullmatch(RELEASED, version):
        yield f"{version} in proxy/__init__.py is not like 1.2.3"
    here = run("git", "rev-parse", "HEAD", cwd=repository).strip()
    tagged = run("git", "tag", "--list", "--format=%(objectname) %(*objectname)", f"v{version}", cwd=repository).split()
    if tagged and here not in tagged:
        yield f"the tag v{version} is on another commit: set a new version in proxy/__init__.py"


def problems_of_changelog(text: str, version: str) -> Iterator[str]:
    """Yield what a changelog in the form of Keep a Changelog lacks for the release of a version."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    headings = [section.splitlines()[0] for section in sections]
    if not re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", next(iter(headings[1:]), "")):
        yield f"the second section of CHANGELOG.md must be: ## [{version}] - YYYY-MM-DD"
    if headings[:1] != ["[Unreleased]"] or re.search(r"^- ", sections[0], re.MULTILINE):
        yield "the first section of CHANGELOG.md must be: ## [Unreleased], without entries"


def problems_of_locks(repository: Path, uv: Sequence[str]) -> Iterator[str]:
    """Yield a sentence if `make lock` would change a lock file, whose versions it keeps where they fit."""
    if shutil.which(uv[0]) is None:
        yield f"{uv[0]} is not installed, which tells whether the lock files fit pyproject.toml: install uv, or set UV"
        return
    with TemporaryDirectory(prefix="cloudrun-sidecar-lock-") as name:
        for file in ("Makefile", "pyproject.toml", *LOCKS):
            shutil.copy2(repository / file, name)
        environment = dict.fromkeys(("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"), "")
        run("make", "lock", f"UV={' '.join(uv)}", cwd=Path(name), environment=environment)
        old = [file for file in LOCKS if (repository / file).read_bytes() != Path(name, file).read_bytes()]
    if old:
        yield f"{' and '.join(old)} no longer fit pyproject.toml: run make lock"


def checksums(folder: Path) -> Path:
    """Write SHA256SUMS of all other files of a folder, as `sha256sum --check` reads it, and return it."""
    sums = folder / "SHA256SUMS"
    files = sorted(file for file in folder.iterdir() if file != sums)
    sums.write_text("".join(f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files))
    return sums


def programs(image: bool, wheels: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the programs that build and try, with what each does."""
    yield "source distribution", ["tests.shipping.dist"]
    yield "wheels", ["tests.shipping.wheels", *wheels]
    if image:
        yield "image", ["tests.shipping.image"]


@click.command()
@click.option("--rehearsal", is_flag=True, help="Do not ask for a dated version in the changelog.")
@click.option("--once", is_flag=True, help="Build each wheel once, and do not compare.")
@click.option("--image/--no-image", default=None, help="Build and try the image; default: if root has buildah.")
def main(rehearsal: bool, once: bool, image: bool | None) -> None:
    """Make and check everything that a release consists of, in dist/."""
    uv = (os.environ.get("UV") or "uv").split()
    try:
        with step("clean tree, version, changelog, lock files"):
            changelog = (
                [] if rehearsal else problems_of_changelog((REPOSITORY / "CHANGELOG.md").read_text(), __version__)
            )
            found = [*problems_of_commit(REPOSITORY, __version__), *changelog, *problems_of_locks(REPOSITORY, uv)]
            check(not found, "".join(f"\n  {sentence}" for sentence in found))
        dist = REPOSITORY / "dist"
        shutil.rmtree(dist, ignore_errors=True)
        if image is None:
            image = os.geteuid() == 0 and shutil.which("buildah") is not None
        for what, program in programs(image, [] if once else ["--twice"]):
            click.echo(f"   {what}")
            done = subprocess.run([sys.executable, "-m", *program], cwd=REPOSITORY, check=False)
            check(done.returncode == 0, f"python -m {' '.join(program)} ended with {done.returncode}")
        for plain in dist.glob("*-linux_*.whl"):
            plain.unlink()  # of tests.shipping.dist: linked to this system's libnghttp2
        with step("bill of materials and checksums"):
            bill = dist / f"cloudrun-sidecar-{__version__}.cdx.json"
            run(sys.executable, "-m", "tests.shipping.sbom", bill, cwd=REPOSITORY)
            checksums(dist)
            run("sha256sum", "--check", "SHA256SUMS", cwd=dist)
    except Wrong as exc:
        click.echo(f"\n{click.style('failed:', fg='red')} {exc}", err=True)
        sys.exit(1)
    click.echo("\n".join(["", *(f"     dist/{file.name}" for file in sorted(dist.iterdir()))]))


if __name__ == "__main__":
    main(prog_name="python -m tests.shipping.release")

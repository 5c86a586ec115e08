"""Gather what a Python program needs to run, and nothing else, into a root file system: no shell, no package manager.

    image_root.py TARGET PROGRAM

PROGRAM is a virtual environment with the program in it. TARGET gets that, the interpreter and its standard library, the
shared libraries that all of these are linked to, the certificate authorities, and a user without rights, 65532. For
every file that comes from a Debian package, TARGET also gets that package's licence, and its record at the place where
vulnerability scanners look for it.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

NO_PART_OF_IT = shutil.ignore_patterns(
    "__pycache__", "*.a", "config-3*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "sitecustomize.py", "test", "tests", "tkinter", "turtledemo", "turtle.py", "_*test*.so",
)  # fmt: skip
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
RELEASE = Path("/etc/os-release")
WRITTEN = {
    "etc/passwd": "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def main(target: Path, program: Path) -> None:
    """Fill TARGET, which must not be there yet."""
    interpreter = Path(os.path.realpath(program / "bin/python"))
    library = Path(sysconfig.get_path("stdlib"))
    _merged_folders(target)
    _copy([interpreter, AUTHORITIES, RELEASE], target)
    shutil.copytree(library, _inside(target, library), ignore=NO_PART_OF_IT, dirs_exist_ok=True)
    shutil.copytree(program, _inside(target, program), symlinks=True, dirs_exist_ok=True)
    objects = [interpreter, *library.rglob("*.so"), *program.rglob("*.so*")]
    libraries = sorted(set(_linked(path for path in objects if path.is_file())))
    _copy((path for path in libraries if program not in path.parents), target)
    _links(target, program, interpreter)
    for name, text in WRITTEN.items():
        _inside(target, Path("/", name)).write_text(text)
    _packages(target, [interpreter, RELEASE, *libraries, *_files(library)])
    _inside(target, Path("/home/nonroot")).mkdir(parents=True)
    _inside(target, Path("/tmp")).mkdir(mode=0o1777)  # noqa: S108 - of the image
    _inside(target, Path("/tmp")).chmod(0o1777)  # noqa: S108 - as above
    _compile(target)
    subprocess.run(["/sbin/ldconfig", "-r", target], check=True)


def _inside(target: Path, path: Path) -> Path:
    return target / path.relative_to("/")


def _merged_folders(target: Path) -> None:
    """Have /lib and the like lead into /usr where they do so here."""
    for name in ("bin", "lib", "lib64", "sbin"):
        here = Path("/", name)
        if here.is_symlink():
            (target / "usr" / name).mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(f"usr/{name}")


def _copy(paths: Iterable[Path], target: Path) -> None:
    for path in paths:
        copy = _inside(target, path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def _links(target: Path, program: Path, interpreter: Path) -> None:
    """Make the links that the program's own link to its interpreter goes through, and OpenSSL's to the authorities."""
    step = program / "bin/python"
    while step.is_symlink():
        if program not in step.parents:
            link = _inside(target, step)
            link.unlink(missing_ok=True)
            link.symlink_to(os.readlink(step))
        step = step.parent / os.readlink(step)
    assert step == interpreter or step.samefile(interpreter)  # noqa: S101 - tells what was assumed
    trusted = _inside(target, Path(ssl.get_default_verify_paths().openssl_cafile))
    trusted.parent.mkdir(parents=True, exist_ok=True)
    trusted.symlink_to(AUTHORITIES)


def _linked(objects: Iterable[Path]) -> Iterator[Path]:
    """Yield the shared libraries that the objects are linked to, the loader included."""
    # The exit status is not 0 when one of them is statically linked.
    told = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=False).stdout
    if missing := re.findall(r"(\S+) => not found", told):
        raise SystemExit(f"these libraries are not installed: {' '.join(missing)}")
    for found in re.finditer(r"(?:=> |^\s+)(/\S+) \(0x", told, re.MULTILINE):
        yield Path(found[1])


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        ignored = NO_PART_OF_IT(here, [*folders, *names])
        folders[:] = [name for name in folders if name not in ignored]
        yield from (Path(here, name) for name in names if name not in ignored)


def _packages(target: Path, files: Iterable[Path]) -> None:
    """Copy licence and record of every package that owns one of the files."""
    # Files below /lib may be on record as such, or below /usr/lib.
    names = {name for file in files for name in (str(file), str(file.resolve()), str(file).removeprefix("/usr"))}
    told = subprocess.run(["dpkg", "--search", *sorted(names)], capture_output=True, text=True, check=False).stdout
    records = _inside(target, Path("/var/lib/dpkg/status.d"))
    records.mkdir(parents=True)
    for package in sorted({line.partition(": ")[0] for line in told.splitlines() if not line.startswith("diversion")}):
        record = subprocess.run(["dpkg-query", "--status", package], capture_output=True, text=True, check=True).stdout
        name = package.partition(":")[0]
        (records / name).write_text(record)
        _copy([Path("/usr/share/doc", name, "copyright")], target)


def _compile(target: Path) -> None:
    """Compile all Python of TARGET beforehand; unchecked, since nothing there changes any more."""
    done = compileall.compile_dir(
        target, maxlevels=50, quiet=1, stripdir=target, prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    if not done:
        raise SystemExit("not everything could be compiled")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

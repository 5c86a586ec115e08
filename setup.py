"""Builds what is compiled, where that can be done; everything else is in pyproject.toml.

Cython compiles two things: the HTTP/2 engine on libnghttp2 (`ENGINE`, one module of several files), and the modules
that every exchange runs through (`DATA_PATH`, plain Python with the C types in a .pxd beside it, which run interpreted
as they are). Without a C compiler, Cython, or the headers of Python and libnghttp2, the package is installed all the
same, with the portable engine and everything interpreted.

`CLOUDRUN_SIDECAR_BUILD` says what is compiled: `all` (the default), `engine` (the engine and the seam that it is built
upon), or `none`. What has been compiled of the same contents before is not compiled again.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CCompilerError

SEAM = ("proxy/http2/engine.py", "proxy/http2/policy/flood.py", "proxy/http2/policy/stream_history.py")
ENGINE = ("proxy/http2/nghttp2/engine.pyx",)
DATA_PATH = (
    "proxy/connection/budget.py",
    "proxy/connection/flusher.py",
    "proxy/connection/reads.py",
    "proxy/connection/protocol.py",
    "proxy/downstream/connection.py",
    "proxy/relay/context.py",
    "proxy/relay/dispatcher.py",
    "proxy/relay/exchange.py",
    "proxy/relay/open_contexts.py",
    "proxy/relay/request_content.py",
    "proxy/relay/signing.py",
    "proxy/relay/snapshot.py",
    "proxy/observe/counters.py",
    "proxy/observe/exchange.py",
    "proxy/tokens/slot.py",
    "proxy/upstream/connection.py",
    "proxy/upstream/origin_pool.py",
    "proxy/upstream/tls.py",
)
CHOICES = {"none": (), "engine": (*SEAM, *ENGINE), "all": (*SEAM, *ENGINE, *DATA_PATH)}
VARIABLE = "CLOUDRUN_SIDECAR_BUILD"

# Types of the Python modules stand in the .pxd alone: annotations there are for people and mypy.
PYTHON_DIRECTIVES = {"annotation_typing": False, "binding": False, "language_level": 3}
ENGINE_DIRECTIVES = {"binding": False, "cdivision": True, "initializedcheck": False, "language_level": 3}
# Behind whatever CFLAGS say, in whose favour setuptools forgets Python's own flags. The last one is an
# error for GCC 14, and so it is for older ones.
FLAGS = ["-O3", "-DNDEBUG", "-fwrapv", "-g0", "-Werror=incompatible-pointer-types"]
PROBE = "#include <Python.h>\n#include <nghttp2/nghttp2.h>\n"
RECORD = "proxy/compiled.json"
"""Digests of what is compiled beside it: of files, for `proxy.compiled`, and of all that makes a module, for the next
build."""


class BuildFast(build_ext):
    """Builds all that was chosen, or nothing of it."""

    def run(self) -> None:
        """Build, and leave nothing that an earlier build has made of other sources or for another choice."""
        self.among_sources = bool(self.inplace)  # which setuptools takes back while it builds
        super().run()
        kept = {self.get_ext_filename(extension.name) for extension in self.extensions}
        if self.among_sources:
            for old in Path("proxy").rglob("*.so"):
                if str(old) not in kept:
                    old.unlink()
            Path(RECORD).unlink(missing_ok=True)
            if self.extensions:
                shutil.copy2(Path(self.build_lib, RECORD), RECORD)
            return
        # All that is there becomes part of the wheel. A compiled module would be imported in the place of its source,
        # and a package that is a module by now in the place of that.
        kept |= {RECORD} if self.extensions else set()
        for old in Path(self.build_lib, "proxy").rglob("*"):
            name = old.relative_to(self.build_lib)
            made = old.suffix == ".so" or str(name) == RECORD
            if not old.is_dir() and str(name) not in kept and (made or not name.exists()):
                old.unlink()

    def build_extensions(self) -> None:
        """Compile what can be compiled; say in one line why not, otherwise."""
        chosen = os.environ.get(VARIABLE) or "all"
        if chosen not in CHOICES:
            raise SystemExit(f"{VARIABLE} must be one of {', '.join(CHOICES)}; it is {chosen!r}")
        self.extensions = [extension for extension in self.extensions if extension.sources[0] in CHOICES[chosen]]
        missing = self._missing() if self.extensions else None
        if not missing and self.extensions:
            try:
                self._build()
            except CCompilerError as exc:
                missing = f"the compiler failed ({exc})"
            except RuntimeError as exc:
                missing = f"Cython failed ({exc})"
        if missing:
            self.announce(f"nothing is compiled, and all runs slower: {missing}", logging.WARNING)
            self.extensions = []
            for old in Path(self.build_lib, "proxy").rglob("*.so"):
                old.unlink()

    def get_source_files(self) -> list[str]:
        """Have source distributions contain all that is compiled; Python they contain anyway."""
        return [str(path) for pattern in ("*.pxd", "*.pxi", "*.pyx") for path in sorted(Path("proxy").rglob(pattern))]

    def _build(self) -> None:
        from Cython.Build import cythonize
        from Cython.Build.Dependencies import create_dependency_tree
        from Cython.Compiler.Errors import CompileError
        from Cython.Compiler.Version import version

        tree = create_dependency_tree()
        build = f"{version} {self.compiler.compiler_so} {FLAGS}".encode()
        # Without Cython's own declarations, which `version` stands for: a wheel must not tell where Cython was.
        wanted = list(self.extensions)
        needed = {
            one.name: sorted(file for file in tree.all_dependencies(one.sources[0]) if not os.path.isabs(file))
            for one in wanted
        }
        digests = {name: digest(files, build) for name, files in needed.items()}
        before = self._recorded()
        changed = []
        for extension in wanted:
            old = Path("" if self.among_sources else self.build_lib, self.get_ext_filename(extension.name))
            new = Path(self.build_lib, self.get_ext_filename(extension.name))
            if self.force or before.get(extension.name) != digests[extension.name] or not old.exists():
                changed.append(extension)
            elif old != new:
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(old, new)
        # Cython and setuptools would look at times, and files that were copied here may be older than what was made of
        # others.
        self.force = True
        made = []
        for directives, suffix in ((PYTHON_DIRECTIVES, ".py"), (ENGINE_DIRECTIVES, ".pyx")):
            try:
                made += cythonize(
                    [extension for extension in changed if extension.sources[0].endswith(suffix)],
                    build_dir=self.build_temp,
                    compiler_directives=directives,
                    force=True,
                    quiet=True,
                )
            except CompileError as exc:
                raise RuntimeError(str(exc)) from exc
        for extension in changed:
            extension.sources = next(one.sources for one in made if one.name == extension.name)
        self.extensions = changed
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()
        self.extensions = wanted
        files = {file: sha256(Path(file).read_bytes()).hexdigest() for file in sorted(set().union(*needed.values()))}
        record = json.dumps({"files": files, "modules": digests}, indent=1, sort_keys=True)
        Path(self.build_lib, RECORD).write_text(record + "\n")

    def _recorded(self) -> dict[str, str]:
        """Return the digests of what was compiled before."""
        try:
            place = Path("" if self.among_sources else self.build_lib, RECORD)
            recorded: dict[str, str] = json.loads(place.read_text())["modules"]
        except (OSError, ValueError, KeyError):
            return {}
        return recorded

    def _missing(self) -> str | None:
        if find_spec("Cython") is None:
            return "Cython is not installed"
        compiler = getattr(self.compiler, "compiler_so", None)
        if compiler is None:
            return "this compiler is not supported"
        flags = [f"-I{folder}" for folder in [*self.compiler.include_dirs, *self.include_dirs]]
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text(PROBE)
            command = [*compiler, *flags, *package_flags("--cflags"), "-c", str(probe), "-o", os.devnull]
            try:
                subprocess.run(command, check=True, capture_output=True)
            except OSError:
                return f"there is no C compiler ({compiler[0]})"
            except subprocess.CalledProcessError:
                return "the headers of Python or libnghttp2 are missing (Debian: python3-dev, libnghttp2-dev)"
        return None


class SourceDistribution(sdist):
    """Makes the same octets of the same files: with the time SOURCE_DATE_EPOCH, and without owners."""

    def make_archive(self, base_name: Any, format: str, *_: Any, base_dir: Any, **__: Any) -> str:  # noqa: A002 - theirs
        """Write base_name.tar.gz and return its name; other formats are not made."""
        if format != "gztar":
            raise SystemExit("the only format of the source distribution is gztar")
        when = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        name = f"{base_name}.tar.gz"
        with gzip.GzipFile(name, "wb", mtime=when) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(base_dir, filter=plain)
        return name


def digest(sources: list[str], build: bytes) -> str:
    """Return what tells whether a module has to be compiled again: its source, its declarations, the build."""
    found = sha256(build)
    for source in sources:
        found.update(f"\0{source}\0".encode() + Path(source).read_bytes())
    return found.hexdigest()


def package_flags(kind: str) -> list[str]:
    """Return what pkg-config knows about libnghttp2 where it is not in the usual place; nothing without pkg-config."""
    try:
        found = subprocess.run(["pkg-config", kind, "libnghttp2"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return found.stdout.split()


def extension(source: str) -> Any:
    """Return how a module is compiled; only the engine is linked to libnghttp2."""
    is_engine = source.endswith(".pyx")
    return Extension(
        source.rpartition(".")[0].replace("/", "."),
        [source],
        extra_compile_args=[*(package_flags("--cflags") if is_engine else []), *FLAGS],
        extra_link_args=(package_flags("--libs") or ["-lnghttp2"]) if is_engine else [],
    )


setup(
    cmdclass={"build_ext": BuildFast, "sdist": SourceDistribution},
    ext_modules=[extension(source) for source in CHOICES["all"]],
)

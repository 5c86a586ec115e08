"""Builds what is compiled, where that can be done; everything else is in pyproject.toml.

Compiled are the HTTP/2 engine on libnghttp2 (Cython), and the modules that every exchange runs through (mypyc, which
takes the same Python that runs without it). Without a C compiler, these tools, or the headers of Python and libnghttp2,
the package is installed all the same, with the engine that needs none of it and with those modules interpreted.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_config_var

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

ENGINE = (
    "outbox",
    "section_reader",
    "section_writer",
    "nghttp2_stream",
    "nghttp2_frames",
    "nghttp2_connection",
    "nghttp2_receiver",
    "nghttp2_engine",
)
ENGINE_DIRECTIVES = {
    "binding": False,
    "boundscheck": False,
    "cdivision": True,
    "initializedcheck": False,
    "language_level": 3,
    "wraparound": False,
}
DATA_PATH = (
    "proxy/downstream/connection.py",
    "proxy/http2/fields.py",
    "proxy/relay/carrier.py",
    "proxy/relay/exchange.py",
    "proxy/relay/forwarder.py",
    "proxy/restate.py",
    "proxy/routing.py",
    "proxy/telemetry/counters.py",
    "proxy/tokens/slot.py",
    "proxy/upstream/connection.py",
    "proxy/upstream/line.py",
    "proxy/wire/budget.py",
    "proxy/wire/protocol.py",
    "proxy/wire/sides.py",
)
# What mypyc knows of other packages must not depend on which are installed.
DATA_PATH_OPTIONS = ("--config-file=", "--no-site-packages", "--ignore-missing-imports")
DATA_PATH_LIBRARY = "proxy.data_path"
PROBE = "#include <Python.h>\n#include <nghttp2/nghttp2.h>\n"


class BuildFast(build_ext):
    """Builds all of it or nothing."""

    def run(self) -> None:
        """Where it is built among the sources, remove first what was compiled of older ones."""
        if self.inplace:
            for old in Path("proxy").rglob(f"*{get_config_var('EXT_SUFFIX')}"):
                old.unlink()
        super().run()

    def build_extensions(self) -> None:
        """Compile what can be compiled; say in one line why not, otherwise."""
        missing = self._missing()
        if not missing:
            try:
                self._build()
            except (CCompilerError, SystemExit) as exc:  # mypyc ends the process over what it cannot compile
                missing = f"the compiler failed ({exc})"
        if missing:
            self.announce(f"nothing is compiled, and all runs slower: {missing}", logging.WARNING)
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []

    def get_source_files(self) -> list[str]:
        """Have source distributions contain all that the engine is made of; Python they contain anyway."""
        return [str(path) for pattern in ("*.pxd", "*.pyx") for path in sorted(Path("proxy").rglob(pattern))]

    def _build(self) -> None:
        from Cython.Build import cythonize
        from mypyc.build import mypycify

        engine = [extension for extension in self.extensions if extension.sources]
        made = cythonize(
            engine, build_dir=self.build_temp, compiler_directives=ENGINE_DIRECTIVES, force=self.force, quiet=True
        )
        made += mypycify(
            [*DATA_PATH_OPTIONS, *DATA_PATH],
            group_name=DATA_PATH_LIBRARY,
            target_dir=self.build_temp,
            debug_level="0",
        )
        by_name = {extension.name: extension for extension in made}
        for extension in self.extensions:
            compiled = by_name[extension.name]
            extension.sources = compiled.sources
            extension.depends = compiled.depends
            extension.include_dirs = compiled.include_dirs
            # A warning of another compiler than mypyc's authors have is no reason to do without.
            extension.extra_compile_args = [flag for flag in compiled.extra_compile_args if flag != "-Werror"]
        super().build_extensions()

    def _missing(self) -> str | None:
        absent = [name for name in ("Cython", "mypyc") if find_spec(name) is None]
        if absent:
            return f"{' and '.join(absent)} not installed"
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


def package_flags(kind: str) -> list[str]:
    """Return what pkg-config knows about libnghttp2 where it is not in the usual place; nothing without pkg-config."""
    try:
        found = subprocess.run(["pkg-config", kind, "libnghttp2"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return found.stdout.split()


def modules(paths: tuple[str, ...]) -> list[str]:
    """Return the names of the modules in these files."""
    return [path.removesuffix(".py").replace("/", ".") for path in paths]


setup(
    cmdclass={"build_ext": BuildFast},
    ext_modules=[
        *(
            Extension(
                f"proxy.http2.{name}",
                [f"proxy/http2/{name}.pyx"],
                extra_compile_args=package_flags("--cflags"),
                extra_link_args=package_flags("--libs") or ["-lnghttp2"],
            )
            for name in ENGINE
        ),
        # Their sources are C that is made while it is built.
        *(Extension(name, []) for name in (f"{DATA_PATH_LIBRARY}__mypyc", *modules(DATA_PATH))),
    ],
)

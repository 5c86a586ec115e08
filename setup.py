"""Builds the compiled HTTP/2 engine where that can be done; everything else is in pyproject.toml.

Without a C compiler, Cython, or the headers of Python and libnghttp2, the package is installed all the same and runs on
the engine that needs none of these.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULES = (
    "outbox",
    "section_reader",
    "section_writer",
    "nghttp2_stream",
    "nghttp2_frames",
    "nghttp2_connection",
    "nghttp2_receiver",
    "nghttp2_engine",
)
DIRECTIVES = {
    "binding": False,
    "boundscheck": False,
    "cdivision": True,
    "initializedcheck": False,
    "language_level": 3,
    "wraparound": False,
}
PROBE = "#include <Python.h>\n#include <nghttp2/nghttp2.h>\n"


class BuildEngine(build_ext):
    """Builds all of the engine or nothing."""

    def build_extensions(self) -> None:
        """Compile what can be compiled; say in one line why not, otherwise."""
        missing = self._missing()
        if missing:
            self.announce(f"the compiled HTTP/2 engine is not built: {missing}", logging.WARNING)
            self.extensions = []
            return
        from Cython.Build import cythonize

        compiled = cythonize(
            self.extensions, build_dir=self.build_temp, compiler_directives=DIRECTIVES, force=self.force, quiet=True
        )
        sources = {extension.name: extension.sources for extension in compiled}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        super().build_extensions()

    def get_source_files(self) -> list[str]:
        """Have source distributions contain all that the engine is made of."""
        return [*super().get_source_files(), *map(str, sorted(Path("proxy").rglob("*.px[dy]")))]

    def _missing(self) -> str | None:
        try:
            import Cython  # noqa: F401  (asked for its presence)
        except ImportError:
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


def package_flags(kind: str) -> list[str]:
    """Return what pkg-config knows about libnghttp2 where it is not in the usual place; nothing without pkg-config."""
    try:
        found = subprocess.run(["pkg-config", kind, "libnghttp2"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return found.stdout.split()


setup(
    cmdclass={"build_ext": BuildEngine},
    ext_modules=[
        Extension(
            f"proxy.http2.{name}",
            [f"proxy/http2/{name}.pyx"],
            extra_compile_args=package_flags("--cflags"),
            extra_link_args=package_flags("--libs") or ["-lnghttp2"],
            optional=True,
        )
        for name in MODULES
    ],
)

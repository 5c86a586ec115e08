"""`serve` begins twice: first with all that reads and judges settings, then anew with nothing but what came out.

What the first beginning needs (click, pydantic, the model and its texts) is never used again, and would be 11 MiB of
the 60 that a sidecar takes: Python does not give modules back. So the process puts itself in its own place, by `exec`.
It stays the process that it was, with its id, parent, environment, working directory, limits and command line, and a
signal meanwhile does what it does to any program that is only starting.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

__all__ = ["handed_over", "serve_anew", "serve_here"]

# No setting, so not `CLOUDRUN_SIDECAR_…`, where whatever is none is refused.
_DESCRIPTOR: Final = "_CLOUDRUN_SIDECAR_SETTINGS_FD"


def serve_here(settings: str) -> int:
    """Run the sidecar in this process as it is; return its exit code. `settings` is of `Settings.to_json`."""
    from proxy.supervisor.serve import serve  # not for those who only ask for help, or have a mistake in a setting

    return serve(settings)


def serve_anew(settings: str) -> int:
    """Begin this process anew, where `handed_over` returns `settings`; run the sidecar as it is where that cannot be.

    It cannot without a memfd (Linux has it), where the program came through a pipe, and where a sandbox forbids either:
    more memory is all that this costs.
    """
    if hasattr(os, "memfd_create") and not _has_been_read():
        with contextlib.suppress(OSError):
            _begin_anew(settings)
    return serve_here(settings)


def handed_over() -> str | None:
    """Return the settings that this process had when it began anew; None where it begins for the first time."""
    # Whatever is started from here must not take it for its own.
    descriptor = os.environ.pop(_DESCRIPTOR, None)
    if descriptor is None:
        return None
    with open(int(descriptor), encoding="utf-8") as handed:
        return handed.read()


def _has_been_read() -> bool:
    """Whether the program is not to be had again: it came through standard input, or another descriptor."""
    return sys.argv[0] in ("", "-") or sys.argv[0].startswith(("/dev/", "/proc/"))


def _begin_anew(settings: str) -> None:
    """Does not return. Raises OSError."""
    # A pipe would hold 64 KiB, a variable 128: some hundred routes.
    descriptor = os.memfd_create("settings", 0)
    try:
        with open(descriptor, "w", encoding="utf-8", closefd=False) as handed:
            handed.write(settings)
        os.lseek(descriptor, 0, os.SEEK_SET)
        # The same interpreter with the same options and script, so that this package is found again as it was.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, _DESCRIPTOR: str(descriptor)})  # noqa: S606
    finally:
        os.close(descriptor)

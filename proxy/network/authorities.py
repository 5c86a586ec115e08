"""The trusted certificate authorities: a file and directories of the system, or `SSL_CERT_FILE` and `SSL_CERT_DIR`.

A TLS context has what the file held when the context was made, and what it has found in the directories since. The file
may come later, as a volume of a container does, or be replaced. OpenSSL takes a missing file for an empty one, and does
not say so.
"""

from __future__ import annotations

import os
import ssl
import stat
from typing import Final

from proxy.quoting import quoted

__all__ = [
    "NONE",
    "NONE_REMEDY",
    "REMEDY",
    "VALIDITY_PERIOD_ERRORS",
    "named_file_problem",
    "state_of_authorities",
    "trusts_none",
]

REMEDY: Final = "put the trusted certificates there (PEM), or unset SSL_CERT_FILE"
"""What to do where a file that SSL_CERT_FILE names cannot be used."""

NONE: Final = "this machine has no trusted certificate authorities"
"""Why nothing verifies where `trusts_none`."""

NONE_REMEDY: Final = "install them (Debian and Alpine: ca-certificates), or name a file of them in SSL_CERT_FILE"
"""What to do about it."""

VALIDITY_PERIOD_ERRORS: Final = frozenset((9, 10))
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED. OpenSSL words them in other ways since 3.6."""


def named_file_problem() -> str:
    """Return what is wrong with the file that SSL_CERT_FILE names; empty if it can be read."""
    named = os.environ.get("SSL_CERT_FILE")
    if not named:
        return ""
    try:
        if not stat.S_ISREG(os.stat(named).st_mode):
            return _unusable(named, "it is not a regular file")
        os.close(os.open(named, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as exc:
        return _unusable(named, exc.strerror or type(exc).__name__)
    return ""


def state_of_authorities(*more: str | os.PathLike[str]) -> tuple[tuple[int, ...], ...]:
    """Return the state of the file, of the directories beside it, and of `more` files: it shows a change of them.

    That of a missing one is `()`. It may wait for a file system.
    """
    file = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().openssl_cafile
    return tuple([_state(path) for path in (file, *_directories(), *more)])


def trusts_none(context: ssl.SSLContext) -> bool:
    """Return True if a context has no authority, as in an image without them, and would not find one.

    It may wait for a file system.
    """
    return not context.cert_store_stats()["x509"] and not any(map(_has_entries, _directories()))


def _directories() -> list[str]:
    return (os.environ.get("SSL_CERT_DIR") or ssl.get_default_verify_paths().openssl_capath).split(os.pathsep)


def _has_entries(directory: str) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


def _state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _unusable(named: str, why: str) -> str:
    return f"SSL_CERT_FILE names {quoted(named)}, which cannot be used: {why}"

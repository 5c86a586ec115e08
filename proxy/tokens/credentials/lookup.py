"""Where Application Default Credentials are: finds the credential file and reads it.

`$GOOGLE_APPLICATION_CREDENTIALS`, then gcloud's well-known file, then (elsewhere) the metadata server.
google-auth's own lookup is not used: it pings the metadata server for up to 12 s and may start `gcloud`.

Reading a file can block for ever: call this on a thread that may be lost (`blocking`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final

from proxy.errors import CredentialsInvalid
from proxy.quoting import plain, quoted
from proxy.tokens.credentials.file import UNIVERSE, UNSUPPORTED_UNIVERSE, CredentialFile
from proxy.tokens.credentials.kinds import credential
from proxy.tokens.regular_files import FileTooLarge, read_regular

__all__ = ["FileSystemFailed", "find", "label", "looked_for", "well_known_path"]

_VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_FOLDER_VARIABLE: Final = "CLOUDSDK_CONFIG"
_WELL_KNOWN: Final = "application_default_credentials.json"

_UNIVERSE_VARIABLE: Final = "GOOGLE_CLOUD_UNIVERSE_DOMAIN"


def find(environment: Mapping[str, str], known: CredentialFile | None = None) -> CredentialFile | None:
    """Return the credential file that the environment names, `known` itself if it is unchanged, None if there is none.

    Raises CredentialsInvalid, with one sentence that says where and what to do, for a file that is named but missing,
    for gcloud's if it is unknown whether it exists, and for a file that is no usable credential.
    """
    if environment.get(_UNIVERSE_VARIABLE, "") not in ("", UNIVERSE):
        raise CredentialsInvalid(f"{_UNIVERSE_VARIABLE} names another universe than {UNIVERSE}: {UNSUPPORTED_UNIVERSE}")
    named = environment.get(_VARIABLE)
    if named:
        return _load(named, known, lambda why: _unusable(named, why))
    if _is_homeless(environment):
        return None
    where = _shown_well_known_path(environment)

    def unusable(why: str) -> CredentialsInvalid:
        what = f"gcloud's credential file, {where}, {why}"
        return CredentialsInvalid(f"{what}; let the sidecar read it, or set {_VARIABLE}")

    try:
        return _load(well_known_path(environment), known, unusable)
    except _Absent:
        return None


class _Absent(CredentialsInvalid):
    """There is no such file.

    No other error means that. A file that exists and cannot be read is not skipped: the next source has another
    identity.
    """


class FileSystemFailed(CredentialsInvalid):
    """The file system failed (an I/O error, a stale handle, too many open files), which says nothing about the file."""


_ABOUT_THE_FILE: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, None)
)
"""Errors of a file, not of the file system; None is that of `regular_files`."""


def _load(path: str, known: CredentialFile | None, unusable: Callable[[str], CredentialsInvalid]) -> CredentialFile:
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise unusable(f"is {'a directory' if stat.S_ISDIR(state.st_mode) else 'not a regular file'}")
        content = read_regular(path)
    except FileTooLarge:
        raise CredentialsInvalid(f"{path} is no credential file: it is larger than 1 MiB") from None
    # Not chained: the errors hold the path, and that could be a pasted key.
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise _Absent(str(unusable(f"cannot be read: {_reason(exc)}"))) from None
    except OSError as exc:
        failure = unusable(f"cannot be read: {_reason(exc)}")
        raise failure if exc.errno in _ABOUT_THE_FILE else FileSystemFailed(str(failure)) from None
    except ValueError:
        raise unusable("cannot be read: a path cannot have a null character") from None
    digest = hashlib.sha256(content).digest()
    if known is not None and (known.path, known.digest) == (path, digest):
        return known
    return credential(path, digest, _object(content, path))


def _unusable(named: str, why: str) -> CredentialsInvalid:
    if plain(named) is None:
        return CredentialsInvalid(
            f"{_VARIABLE} must be the path of a credential file, and holds {quoted(named)}; write a credential to a "
            "file of its own, and name that"
        )
    return CredentialsInvalid(
        f"{_VARIABLE} names {quoted(named)}, which {why}; name a credential file that the sidecar can read"
    )


def _reason(exc: OSError) -> str:
    return exc.strerror or (os.strerror(exc.errno) if exc.errno else type(exc).__name__)


def label(environment: Mapping[str, str]) -> str:
    """Return in words which file `find` reads, without reading anything."""
    named = environment.get(_VARIABLE)
    return f"the credential file {quoted(named)}" if named else "gcloud's credential file"


def well_known_path(environment: Mapping[str, str]) -> str:
    """Return where `gcloud auth application-default login` leaves its file."""
    home = environment.get("HOME") or os.path.expanduser("~")
    folder = environment.get(_FOLDER_VARIABLE) or os.path.join(home, ".config", "gcloud")
    return os.path.join(folder, _WELL_KNOWN)


def looked_for(environment: Mapping[str, str]) -> str:
    """Return in words where `find` found nothing."""
    return f"{_VARIABLE} is not set and there is no {_shown_well_known_path(environment)}"


def _is_homeless(environment: Mapping[str, str]) -> bool:
    """Return True if the user has no home directory: `~` would be a folder of the working directory."""
    return not (environment.get("HOME") or environment.get(_FOLDER_VARIABLE)) and os.path.expanduser("~") == "~"


def _shown_well_known_path(environment: Mapping[str, str]) -> str:
    if _is_homeless(environment):
        return f"{_WELL_KNOWN} of gcloud, because HOME is not set and the user has no home directory"
    path = well_known_path(environment)
    if plain(path) is not None:
        return path
    return f"{_WELL_KNOWN} below {_FOLDER_VARIABLE if environment.get(_FOLDER_VARIABLE) else 'HOME'}"


def _object(content: bytes, path: str) -> dict[str, Any]:
    if not content.strip():
        raise CredentialsInvalid(f"the credential file {path} is empty")
    try:
        info = json.loads(content)
    except (ValueError, RecursionError):  # Not chained: the error holds the text.
        raise CredentialsInvalid(f"the credential file {path} is not JSON") from None
    if not isinstance(info, dict):
        raise CredentialsInvalid(f"the credential file {path} is not a JSON object")
    return info

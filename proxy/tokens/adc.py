"""Where Application Default Credentials are: the lookup, and the first look into the file.

`$GOOGLE_APPLICATION_CREDENTIALS`, then gcloud's well-known file, then (elsewhere) the metadata server.
google-auth's own lookup is not used: it pings the metadata server for up to 12 s and may start `gcloud`.

Everything here blocks, a little: call it on a thread that may wait.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from proxy.errors import CredentialsInvalid

__all__ = ["CredentialFile", "Kind", "find", "is_near", "looked_for"]

Kind = Literal[
    "service_account",
    "authorized_user",
    "external_account",
    "external_account_authorized_user",
    "impersonated_service_account",
]

_VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"

_UNIVERSE_VARIABLE: Final = "GOOGLE_CLOUD_UNIVERSE_DOMAIN"
_UNIVERSE: Final = "googleapis.com"
_UNSUPPORTED: Final = "only Google's public cloud is supported"

_MOST_OCTETS: Final = 1 << 20

_REQUIRED: Final[dict[Kind, tuple[str, ...]]] = {
    "service_account": ("client_email", "private_key", "token_uri"),
    "authorized_user": ("client_id", "client_secret", "refresh_token"),
    "external_account": ("audience", "subject_token_type", "credential_source"),
    "external_account_authorized_user": ("client_id", "client_secret", "refresh_token", "token_url", "audience"),
    "impersonated_service_account": ("service_account_impersonation_url", "source_credentials"),
}

_SOURCES: Final = ("environment_id", "executable", "file", "url")
"""What a `credential_source` has one of; the first is AWS', which has a `url` besides."""

_OBJECTS: Final = frozenset({"credential_source", "source_credentials"})


@dataclass(frozen=True, slots=True)
class CredentialFile:
    """A credential file that was read and looks right. Its content has no repr."""

    path: str
    stamp: tuple[int, int, int, int]
    """Device, inode, size and time of change in ns; another one means another content."""
    kind: Kind
    info: Mapping[str, Any] = field(repr=False)
    """The JSON object."""


def find(environment: Mapping[str, str], known: CredentialFile | None = None) -> CredentialFile | None:
    """Return the credential file that the environment names, `known` itself if it is unchanged, None if there is none.

    Raises CredentialsInvalid, with one sentence that names the path, for a file that is named but missing, or there but
    not a credential that can be used.
    """
    if environment.get(_UNIVERSE_VARIABLE, "") not in ("", _UNIVERSE):
        raise CredentialsInvalid(f"{_UNIVERSE_VARIABLE} names another universe than {_UNIVERSE}: {_UNSUPPORTED}")
    named = environment.get(_VARIABLE)
    path = named or well_known_path(environment)
    try:
        state = os.stat(path)
    except (OSError, ValueError) as exc:
        if not named:
            return None
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise CredentialsInvalid(f"{_VARIABLE} names {path!r}, which cannot be read: {why}") from exc
    stamp = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if known is not None and (known.path, known.stamp) == (path, stamp):
        return known
    if not stat.S_ISREG(state.st_mode):
        if not named:
            return None
        what = "a directory" if stat.S_ISDIR(state.st_mode) else "not a regular file"
        raise CredentialsInvalid(f"{_VARIABLE} names {path!r}, which is {what}; name the credential file")
    info = _read(path)
    return CredentialFile(path, stamp, check(info, path), info)


def well_known_path(environment: Mapping[str, str]) -> str:
    """Return where `gcloud auth application-default login` leaves its file."""
    home = environment.get("HOME") or os.path.expanduser("~")
    folder = environment.get("CLOUDSDK_CONFIG") or os.path.join(home, ".config", "gcloud")
    return os.path.join(folder, "application_default_credentials.json")


def looked_for(environment: Mapping[str, str]) -> str:
    """Return in words where `find` found nothing."""
    return f"{_VARIABLE} is not set and there is no {well_known_path(environment)}"


def check(info: Mapping[str, Any], path: str) -> Kind:
    """Return the kind of a credential; CredentialsInvalid unless it is one that can be used.

    `path` is what the sentence names, nothing of the content but names of members and the type is.
    """
    declared = info.get("type")
    if declared == "gdch_service_account":
        raise CredentialsInvalid(
            f"{path}: credentials of Google Distributed Cloud Hosted cannot mint ID tokens; "
            "use a service account's key file, or federation with impersonation"
        )
    kind = next((known for known in _REQUIRED if known == declared), None)
    if kind is None:
        what = f'has the type "{declared[:60]}"' if isinstance(declared, str) else "has no type"
        raise CredentialsInvalid(f"{path} {what}; a Google credential file has one of: {', '.join(_REQUIRED)}")
    missing = [name for name in _REQUIRED[kind] if not _filled(info.get(name), name)]
    if missing:
        raise CredentialsInvalid(f"{path} ({kind}) has no {', '.join(missing)}; get the file anew")
    for name in ("token_uri", "token_url"):
        url = str(info.get(name, "https://"))
        if not url.startswith(("https://", "http://")):
            raise CredentialsInvalid(f"{path} ({kind}): its {name} is not an http(s) URL")
        if url.startswith("http://") and not is_near(url):
            raise CredentialsInvalid(
                f"{path} ({kind}): its {name} is plain http:// to another machine, and what goes there is secret; "
                "it has to be https://"
            )
    if info.get("universe_domain", _UNIVERSE) != _UNIVERSE:
        raise CredentialsInvalid(f"{path} belongs to another universe than {_UNIVERSE}: {_UNSUPPORTED}")
    if kind == "external_account":
        _check_source(info["credential_source"], path)
    return kind


def is_near(url: str) -> bool:
    """Return whether a URL's host is `localhost` or an address that is not public."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _check_source(source: Mapping[str, Any], path: str) -> None:
    """Raise CredentialsInvalid unless a subject token can come from `source`."""
    if "certificate" in source:
        raise CredentialsInvalid(
            f"{path}: X.509 workload identity federation is not supported; use a file, url, executable or AWS source"
        )
    named = [name for name in _SOURCES if name in source]
    if not named:
        raise CredentialsInvalid(f"{path}: its credential_source has none of {', '.join(_SOURCES)}; get the file anew")
    if named[0] == "executable":
        executable = source["executable"]
        if not isinstance(executable, dict) or not _filled(executable.get("command"), "command"):
            raise CredentialsInvalid(f"{path}: the executable of its credential_source has no command")
    elif not _filled(source[named[0]], named[0]):
        raise CredentialsInvalid(f"{path}: the {named[0]} of its credential_source is empty")


def _filled(value: object, name: str) -> bool:
    return bool(value) and isinstance(value, dict if name in _OBJECTS else str)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_OCTETS + 1)
    except OSError as exc:
        raise CredentialsInvalid(f"the credential file {path} cannot be read: {exc.strerror}") from exc
    if not content.strip():
        raise CredentialsInvalid(f"the credential file {path} is empty")
    if len(content) > _MOST_OCTETS:
        raise CredentialsInvalid(f"{path} is no credential file: it is larger than 1 MiB")
    try:
        info = json.loads(content)
    except (ValueError, RecursionError):  # Not chained: the error holds the text.
        raise CredentialsInvalid(f"the credential file {path} is not JSON") from None
    if not isinstance(info, dict):
        raise CredentialsInvalid(f"the credential file {path} is not a JSON object")
    return info

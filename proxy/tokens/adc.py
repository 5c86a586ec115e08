"""Where Application Default Credentials are: the lookup, and the first look into the file.

`$GOOGLE_APPLICATION_CREDENTIALS`, then gcloud's well-known file, then (elsewhere) the metadata server.
google-auth's own lookup is not used: it pings the metadata server for up to 12 s and may start `gcloud`.

Everything here reads files and so can block for ever: call it on a thread that may be lost (`blocking`).
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from proxy.errors import CredentialsInvalid
from proxy.quoting import plain, quoted
from proxy.routes.locality import address_of, is_link_local, is_loopback
from proxy.tokens.reading import FileTooLarge, read_regular

__all__ = ["CredentialFile", "FileSystemFailed", "Kind", "find", "is_near", "label", "looked_for"]

Kind = Literal[
    "service_account",
    "authorized_user",
    "external_account",
    "external_account_authorized_user",
    "impersonated_service_account",
]

_VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_FOLDER_VARIABLE: Final = "CLOUDSDK_CONFIG"
_WELL_KNOWN: Final = "application_default_credentials.json"

_UNIVERSE_VARIABLE: Final = "GOOGLE_CLOUD_UNIVERSE_DOMAIN"
_UNIVERSE: Final = "googleapis.com"
_UNSUPPORTED: Final = "only Google's public cloud is supported"

# RFC 3986 has no other character, but for the names in braces that google-auth fills in.
_VISIBLE: Final = re.compile(r"[!-\[\]-~]+")

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

_URLS: Final = ("token_uri", "token_url", "token_info_url", "revoke_url", "service_account_impersonation_url")
"""Members that say where tokens, keys or proofs of them go."""

_SOURCE_URLS: Final = ("url", "region_url", "imdsv2_session_token_url", "regional_cred_verification_url")
"""The same of a `credential_source`."""

# IPv6 addresses of AWS' metadata servers: EC2's fd00:ec2::254, EKS' fd00:ec2::23. Link-local but for their prefix.
_METADATA_OF_AWS: Final = ipaddress.IPv6Network("fd00:ec2::/32")


@dataclass(frozen=True, slots=True)
class CredentialFile:
    """A credential file that was read and looks right. Its content has no repr."""

    path: str
    digest: bytes
    """SHA-256 of the content. Times and sizes do not tell it from another: they can be set, or be the same."""
    kind: Kind
    info: Mapping[str, Any] = field(repr=False)
    """The JSON object."""


def find(environment: Mapping[str, str], known: CredentialFile | None = None) -> CredentialFile | None:
    """Return the credential file that the environment names, `known` itself if it is unchanged, None if there is none.

    Raises CredentialsInvalid, with one sentence that says where and what to do, for a file that is named but missing,
    for gcloud's where it cannot be told whether it is there, and for one that is not a credential that can be used.
    """
    if environment.get(_UNIVERSE_VARIABLE, "") not in ("", _UNIVERSE):
        raise CredentialsInvalid(f"{_UNIVERSE_VARIABLE} names another universe than {_UNIVERSE}: {_UNSUPPORTED}")
    named = environment.get(_VARIABLE)
    if named:
        return _load(named, known, lambda why: _unusable(named, why))
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

    No other error means that. A file that is there, and cannot be read, is not passed over: the next source is another
    identity.
    """


class FileSystemFailed(CredentialsInvalid):
    """The file system failed (an I/O error, a stale handle, too many open files): that says nothing of the file."""


_TELLING: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, None)
)
"""What goes wrong with a file, not with the file system; None is of our own kinds of OSError."""


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
        raise failure if exc.errno in _TELLING else FileSystemFailed(str(failure)) from None
    except ValueError:
        raise unusable("cannot be read: a path holds no zero octet") from None
    digest = hashlib.sha256(content).digest()
    if known is not None and (known.path, known.digest) == (path, digest):
        return known
    info = _object(content, path)
    return CredentialFile(path, digest, check(info, path), info)


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
    """Return in words which file `find` reads; without a look at the file system."""
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


def _shown_well_known_path(environment: Mapping[str, str]) -> str:
    path = well_known_path(environment)
    if plain(path) is not None:
        return path
    return f"{_WELL_KNOWN} below {_FOLDER_VARIABLE if environment.get(_FOLDER_VARIABLE) else 'HOME'}"


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
        what = f"has the type {quoted(declared)}" if isinstance(declared, str) else "has no type"
        raise CredentialsInvalid(f"{path} {what}; a Google credential file has one of: {', '.join(_REQUIRED)}")
    missing = [name for name in _REQUIRED[kind] if not _filled(info.get(name), name)]
    if missing:
        raise CredentialsInvalid(f"{path} ({kind}) has no {', '.join(missing)}; get the file anew")
    for name in _URLS:
        _check_url(info.get(name), name, f"{path} ({kind})")
    if info.get("universe_domain") not in (None, "", _UNIVERSE):
        raise CredentialsInvalid(f"{path} belongs to another universe than {_UNIVERSE}: {_UNSUPPORTED}")
    if kind == "external_account":
        _check_source(info["credential_source"], path)
    return kind


def is_near(url: str) -> bool:
    """Return whether a URL leads to this machine, or to a metadata server: by its address, loopback or link-local."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    address = address_of(host)
    return is_loopback(host) or is_link_local(host) or (address is not None and address in _METADATA_OF_AWS)


def _check_url(url: object, name: str, whose: str) -> None:
    """Raise CredentialsInvalid unless a secret may go to a URL (None or `""` is none, and nothing goes there)."""
    if url is None or url == "":
        return
    text = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("https", "http") or not parts.hostname or not _VISIBLE.fullmatch(text):
        raise CredentialsInvalid(f"{whose}: its {name} is not an http(s) URL")
    if "@" in parts.netloc:
        raise CredentialsInvalid(f"{whose}: its {name} holds a user name or password, which is not sent; remove it")
    if parts.scheme == "http" and not is_near(text):
        raise CredentialsInvalid(
            f"{whose}: its {name} is plain http:// to another machine, and what goes there, or comes from there, is "
            "secret; it has to be https://"
        )


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
    for name in _SOURCE_URLS:
        _check_url(source.get(name), f"credential_source.{name}", f"{path} (external_account)")


def _filled(value: object, name: str) -> bool:
    return bool(value) and isinstance(value, dict if name in _OBJECTS else str)


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

"""Subject tokens of workload identity federation that come from this machine: from a file, or from an executable.

google-auth would read and run them itself, without a bound. Those from a URL or from AWS are HTTP, and left to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from proxy.errors import CredentialsInvalid, TokenTimeout
from proxy.quoting import quoted
from proxy.tokens.adc import CredentialFile
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.executable import Executable
from proxy.tokens.reading import FileTooLarge, NotRegularFile, read_regular

__all__ = ["FILE_SECONDS", "local_subject_token"]

FILE_SECONDS: Final = 3.0
"""How long the file system may take to give a small file: less than the default of `mint_timeout`, so that a request
that waits is told what it waited for."""

_EXECUTABLE_GRACE_SECONDS: Final = 3.0


async def local_subject_token(file: CredentialFile, account: str | None, blocking: BlockingCalls) -> str | None:
    """Return the subject token that a credential file gets from a file or an executable; None for other sources.

    `account` is the service account that the credential file impersonates, if it does. Raises CredentialsInvalid,
    TokenTimeout, TokenUnavailable; nothing of the token is in their sentences.
    """
    source = file.info.get("credential_source")
    if file.kind != "external_account" or not isinstance(source, dict) or "environment_id" in source:
        return None
    if "executable" in source:
        return await _run(Executable(file.path, file.info, account), file, blocking)
    path = source.get("file")
    if not isinstance(path, str):
        return None
    read = partial(_read, path, file.path, source.get("format"))
    return await blocking.run(read, place=f"the subject token's file {quoted(path)}", seconds=FILE_SECONDS)


async def _run(executable: Executable, file: CredentialFile, blocking: BlockingCalls) -> str:
    seconds = executable.timeout_seconds + _EXECUTABLE_GRACE_SECONDS
    try:
        return await blocking.run(executable.run, place=f"the executable in {file.path}", seconds=seconds)
    except (asyncio.CancelledError, TokenTimeout):
        executable.stop()
        raise


def _read(path: str, named_in: str, format_: Any) -> str:
    try:
        content = read_regular(path).decode()
    except FileNotFoundError:
        raise CredentialsInvalid(
            f"{named_in} (external_account) cannot be used: File {quoted(path)} was not found."
        ) from None
    except UnicodeDecodeError:
        raise CredentialsInvalid(f"the subject token's file in {named_in} is not text") from None
    except (NotRegularFile, FileTooLarge) as exc:
        raise CredentialsInvalid(
            f"the subject token's file in {named_in} ({quoted(path)}) cannot be used: {exc.strerror}"
        ) from None
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise CredentialsInvalid(f"the subject token's file in {named_in} cannot be read: {why}") from None
    token = _from_json(content, path, named_in, format_) if _is_json(format_, named_in) else content
    if not token:
        raise CredentialsInvalid(f"the subject token's file in {named_in} ({quoted(path)}) has no subject token")
    return token


def _is_json(format_: Any, named_in: str) -> bool:
    kind = format_.get("type") or "text" if isinstance(format_, Mapping) else format_ or "text"
    if kind not in ("text", "json") or (kind == "json" and not isinstance(format_, Mapping)):
        raise CredentialsInvalid(f"{named_in}: the format of its credential_source is neither text nor json")
    return kind == "json"


def _from_json(content: str, path: str, named_in: str, format_: Mapping[str, Any]) -> str:
    name = format_.get("subject_token_field_name")
    if not isinstance(name, str):
        raise CredentialsInvalid(f"{named_in}: the format of its credential_source lacks subject_token_field_name")
    try:
        token = json.loads(content)[name]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):  # Not chained: the error holds the text.
        token = None
    if not isinstance(token, str):
        raise CredentialsInvalid(
            f"{named_in} (external_account) cannot be used: Unable to parse subject_token from JSON file "
            f"{quoted(path)} using key {quoted(name)}"
        )
    return token

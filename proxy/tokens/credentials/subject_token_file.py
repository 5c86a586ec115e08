"""A subject token in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from proxy.errors import CredentialsInvalid
from proxy.quoting import quoted
from proxy.tokens.blocking import FILE_SECONDS, BlockingCalls
from proxy.tokens.credentials.subject_token import SubjectTokenSource
from proxy.tokens.regular_files import FileTooLarge, NotRegularFile, read_regular

__all__ = ["FileSource"]


class FileSource(SubjectTokenSource):
    """A file, as text or JSON. The sidecar reads it, because google-auth would do so without a limit."""

    member = "file"

    async def local_subject_token(self, blocking: BlockingCalls) -> str | None:
        path = self.settings["file"]
        read = partial(_read, path, self.path, self.settings.get("format"))
        return await blocking.run(read, resource=f"the subject token's file {quoted(path)}", seconds=FILE_SECONDS)


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
    token = _from_json(content, path, named_in, format_) if _is_json(format_, named_in) else content.strip()
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

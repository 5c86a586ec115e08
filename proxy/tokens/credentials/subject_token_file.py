"""A subject token in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping

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
        resource = f"the subject token's file {quoted(self.settings['file'])}"
        return await blocking.run(self._read, resource=resource, seconds=FILE_SECONDS)

    def _read(self) -> str:
        path = self.settings["file"]
        what = f"the subject token's file in {self.path}"
        try:
            content = read_regular(path).decode()
        except FileNotFoundError:
            raise CredentialsInvalid(
                f"{self.path} (external_account) cannot be used: File {quoted(path)} was not found."
            ) from None
        except UnicodeDecodeError:
            raise CredentialsInvalid(f"{what} is not text") from None
        except (NotRegularFile, FileTooLarge) as exc:
            raise CredentialsInvalid(f"{what} ({quoted(path)}) cannot be used: {exc.strerror}") from None
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise CredentialsInvalid(f"{what} cannot be read: {why}") from None
        token = self._from_json(content) if self._is_json() else content.strip()
        if not token:
            raise CredentialsInvalid(f"{what} ({quoted(path)}) has no subject token")
        return token

    def _is_json(self) -> bool:
        form = self.settings.get("format")
        kind = form.get("type") or "text" if isinstance(form, Mapping) else form or "text"
        if kind not in ("text", "json") or (kind == "json" and not isinstance(form, Mapping)):
            raise CredentialsInvalid(f"{self.path}: the format of its credential_source is neither text nor json")
        return kind == "json"

    def _from_json(self, content: str) -> str:
        name = self.settings["format"].get("subject_token_field_name")
        if not isinstance(name, str):
            raise CredentialsInvalid(f"{self.path}: the format of its credential_source lacks subject_token_field_name")
        try:
            token = json.loads(content)[name]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError):  # Not chained: the error holds the text.
            token = None
        if not isinstance(token, str):
            raise CredentialsInvalid(
                f"{self.path} (external_account) cannot be used: Unable to parse subject_token from JSON file "
                f"{quoted(self.settings['file'])} using key {quoted(name)}"
            )
        return token

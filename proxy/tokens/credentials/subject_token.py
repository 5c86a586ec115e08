"""What all sources of subject tokens have in common. A source is a subclass in a file of its own."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from proxy.errors import CredentialsInvalid, Failure
from proxy.quoting import plain
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.calls import NotConnected, Reply, failure_of_reply
from proxy.tokens.credentials.members import check_url, is_filled

__all__ = ["SubjectTokenSource"]

_URL_FIELDS: Final = ("url", "region_url", "imdsv2_session_token_url", "regional_cred_verification_url")
"""Members of a `credential_source` that say where secrets are sent, or come from."""

_SUBJECT_TOKEN_URLS: Final = ("url", "region_url", "imdsv2_session_token_url")
"""Those of them that are asked for a subject token, or for what makes one."""


class SubjectTokenSource(ABC):
    """Where a federated credential file has its subject token from: its `credential_source`."""

    member: ClassVar[str]
    """The member of a `credential_source` that shows this source."""

    def __init__(self, path: str, info: Mapping[str, Any], account: str | None) -> None:
        self.path = path
        """Where the file is."""
        self.info = info
        """The content of the file."""
        self.settings: Mapping[str, Any] = info["credential_source"]
        """The `credential_source`."""
        self.account = account
        """The service account that the file impersonates, or None."""

    def check(self) -> None:
        """Raise CredentialsInvalid unless a subject token can come from here."""
        self.check_member()
        for name in _URL_FIELDS:
            check_url(self.settings.get(name), f"credential_source.{name}", f"{self.path} (external_account)")

    def check_member(self) -> None:
        """Raise CredentialsInvalid unless the source's own member is complete."""
        if not is_filled(self.settings[self.member], False):
            raise CredentialsInvalid(f"{self.path}: the {self.member} of its credential_source is empty")

    async def local_subject_token(self, blocking: BlockingCalls) -> str | None:
        """Return the subject token that comes from this machine; None where google-auth fetches it by HTTP.

        Raises CredentialsInvalid, TokenTimeout, TokenUnavailable; nothing of the token is in their sentences.
        """
        return None

    def is_asked_at(self, url: str) -> bool:
        """Return whether a call to this URL was for a subject token."""
        urls = [self.settings.get(name) for name in _SUBJECT_TOKEN_URLS]
        return any(isinstance(known, str) and url.startswith(known) for known in urls)

    def failed(self, cause: Failure) -> Failure:
        """Return what to do where no answer came."""
        what = f"{self.path} takes its subject token from a URL (credential_source), which gave none: {cause}"
        if isinstance(cause, NotConnected) and str(cause).startswith("169.254."):
            return CredentialsInvalid(f"{what}. Is this a machine of the cloud that the file was made for?")
        return type(cause)(what)

    def refused(self, host: str, reply: Reply) -> Failure:
        """Return what to do where the answer was no subject token."""
        path = urlsplit(str(self.settings.get("url", ""))).path
        where = path if path and plain(path) is not None else "its URL"
        what = f"{host} (credential_source of {self.path})"
        return failure_of_reply(what, reply, f"is {where} right, and does this machine have an identity there?")

    def quoted_values(self) -> list[object]:
        """Return the values of the `credential_source` that google-auth quotes in its messages."""
        form = self.settings.get("format")
        return [self.settings.get("url"), form.get("subject_token_field_name") if isinstance(form, dict) else None]

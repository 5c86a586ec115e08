"""Credentials of Google Distributed Cloud Hosted (`gdch_service_account`), which cannot be used."""

from __future__ import annotations

from proxy.errors import CredentialsInvalid
from proxy.tokens.credentials.file import CredentialFile, SourceTools
from proxy.tokens.credentials.source import CredentialSource

__all__ = ["DistributedCloudAccount"]


class DistributedCloudAccount(CredentialFile):
    """Refused: it cannot mint ID tokens."""

    kind = "gdch_service_account"
    label = "Google Distributed Cloud Hosted"
    supported = False

    def check(self) -> None:
        raise CredentialsInvalid(
            f"{self.path}: credentials of Google Distributed Cloud Hosted cannot mint ID tokens; "
            "use a service account's key file, or federation with impersonation"
        )

    def source(self, tools: SourceTools) -> CredentialSource:
        raise NotImplementedError  # `check` refuses the file

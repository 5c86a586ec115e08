"""The key file of a service account (`service_account`)."""

from __future__ import annotations

from typing import Any

from proxy.errors import CredentialsInvalid
from proxy.tokens.credentials.google_auth_file import GoogleAuthFile
from proxy.tokens.credentials.iam_credentials import CLOUD_PLATFORM
from proxy.tokens.credentials.iam_refusals import enable_account
from proxy.tokens.model import is_account

__all__ = ["ServiceAccountKey"]


class ServiceAccountKey(GoogleAuthFile):
    """A private key, which signs assertions for the OAuth token endpoint."""

    kind = "service_account"
    label = "key file"
    required_fields = ("client_email", "private_key", "token_uri")
    mints_id_tokens = True

    def load(self, subject_token: str | None) -> Any:
        from google.oauth2 import service_account

        info = self.google_auth_info()
        return service_account.Credentials.from_service_account_info(info, scopes=[CLOUD_PLATFORM])  # type: ignore[no-untyped-call]

    def load_for_audience(self, audience: str) -> Any:
        from google.oauth2 import service_account

        info = self.google_auth_info()
        return service_account.IDTokenCredentials.from_service_account_info(info, target_audience=audience)  # type: ignore[no-untyped-call]

    def principal_name(self) -> str:
        name = self.info.get("client_email")
        return name if isinstance(name, str) else ""

    @property
    def unnamed_principal(self) -> str:
        return "the service account"

    def load_failure(self, reason: str) -> CredentialsInvalid:
        return CredentialsInvalid(
            f"the private_key in {self.path} is not an RSA key in PEM form; create the file again"
        )

    def rejection(self, answer: str, clock: str) -> str:
        account = self.principal_name()
        if clock:
            why = clock
        elif "account disabled" in answer.lower():
            why = f"its service account is disabled; {enable_account(account if is_account(account) else 'ACCOUNT')}"
        elif "account not found" in answer.lower():
            why = "its service account was deleted; create a new key, of another one"
        else:
            why = "it was deleted or disabled; create a new key"
        return f"Google does not accept the key in {self.path}{answer}: {why}"

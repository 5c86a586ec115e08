"""A person's credentials by workforce identity federation (`external_account_authorized_user`)."""

from __future__ import annotations

from typing import Any

from proxy.tokens.credentials.google_auth_file import GoogleAuthFile

__all__ = ["WorkforceUser"]


class WorkforceUser(GoogleAuthFile):
    """A refresh token of a person who signed in with another identity provider."""

    kind = "external_account_authorized_user"
    label = "workforce identity federation"
    required_fields = ("client_id", "client_secret", "refresh_token", "token_url", "audience")

    def load(self, subject_token: str | None) -> Any:
        from google.auth import external_account_authorized_user

        return external_account_authorized_user.Credentials.from_info(self.google_auth_info())  # type: ignore[no-untyped-call]

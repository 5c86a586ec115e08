"""A person's credentials, from `gcloud auth application-default login` (`authorized_user`)."""

from __future__ import annotations

from typing import Any

from proxy.tokens.credentials.google_auth_file import GoogleAuthFile

__all__ = ["AuthorizedUser"]


class AuthorizedUser(GoogleAuthFile):
    """A refresh token of a person. Google signs no ID token for an audience for it."""

    kind = "authorized_user"
    label = "user credentials"
    required_fields = ("client_id", "client_secret", "refresh_token")

    def load(self, subject_token: str | None) -> Any:
        from google.oauth2 import credentials

        # Without scopes: those that the person granted. Then Google returns an ID token too, which names the person.
        return credentials.Credentials.from_authorized_user_info(self.google_auth_info())  # type: ignore[no-untyped-call]

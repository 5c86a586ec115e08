"""Credential files that google-auth gets tokens for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from proxy.errors import AmbientUnsupported
from proxy.tokens.calls import Bearer, BlockingSend
from proxy.tokens.credentials.file import CredentialFile, SourceTools
from proxy.tokens.credentials.source import AccessTokenCache, CredentialSource
from proxy.tokens.model import Token, TokenKey

__all__ = ["GoogleAuthFile"]


class GoogleAuthFile(CredentialFile):
    """A credential file that google-auth gets tokens for. `load…` is called on a thread that may block."""

    @abstractmethod
    def load(self, subject_token: str | None) -> Any:
        """Return google-auth's credentials for access tokens; any exception means that they cannot be loaded.

        `subject_token` comes from this machine; None if there is none, or google-auth fetches it.
        """

    def load_for_audience(self, audience: str) -> Any:
        """Return google-auth's credentials for ID tokens; called only if `mints_id_tokens`."""
        raise NotImplementedError

    def source(self, tools: SourceTools) -> CredentialSource:
        return _GoogleAuthSource(self, tools)


class _GoogleAuthSource:
    """The tokens of one credential file."""

    def __init__(self, file: GoogleAuthFile, tools: SourceTools) -> None:
        self._file = file
        self._tools = tools
        self._email: str | None = None
        self._fetch_on_thread: Callable[[BlockingSend], Bearer] | None = None
        self._cache = AccessTokenCache(self._access_token, tools.clock)

    async def identity(self, key: TokenKey) -> Token:
        if not self._file.mints_id_tokens:
            raise AmbientUnsupported(
                f"{self._file.label} ({self._file.path}) cannot mint an ID token for the audience "
                f"{key.audience}, because Google signs those for service accounts only. Three remedies: set "
                "gcp_impersonate_service_account on the route; or set GOOGLE_APPLICATION_CREDENTIALS to a service "
                "account's key file; or run where a metadata server is (Compute Engine, GKE, Cloud Run)"
            )

        def mint(send: BlockingSend) -> Token:
            # google-auth is imported here, on the thread, and not before.
            from proxy.tokens.credentials import google_auth

            credentials = google_auth.load(self._file, lambda: self._file.load_for_audience(key.audience))
            return google_auth.id_token(self._file, credentials, key, send, self._tools.clock)

        return await self._tools.threads.run(mint)

    async def bearer(self, stale: Bearer | None = None) -> Bearer:
        return await self._cache.get(stale)

    async def principal(self) -> str:
        return self._file.principal(self._email)

    async def _access_token(self) -> Bearer:
        """Fetch an access token with newly loaded credentials, unless they have a refresh token.

        Google may replace a refresh token, and then google-auth's credentials have the new one. Federation that goes
        through a service account, on the other hand, would go on with an exchanged token that Google has revoked.
        After a failed or cancelled fetch credentials are not used again: their thread may still be running.
        """
        fetch, self._fetch_on_thread = self._fetch_on_thread, None
        if fetch is None:
            subject_tokens = self._file.subject_token_source
            subject_token = await subject_tokens.local_subject_token(self._tools.blocking) if subject_tokens else None
            fetch = await self._tools.threads.run(partial(self._load, subject_token))
        fetched = await self._tools.threads.run(fetch)
        if "refresh_token" in self._file.info:
            self._fetch_on_thread = fetch
        self._email = fetched.principal
        return fetched

    def _load(self, subject_token: str | None, send: BlockingSend) -> Callable[[BlockingSend], Bearer]:
        del send
        from proxy.tokens.credentials import google_auth

        credentials = google_auth.load(self._file, lambda: self._file.load(subject_token))
        return partial(google_auth.access_token, self._file, credentials, self._tools.quota_project, self._tools.clock)

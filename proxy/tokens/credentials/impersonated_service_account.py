"""A service account that is impersonated by the credential inside the file (`impersonated_service_account`)."""

from __future__ import annotations

from proxy.errors import CredentialsInvalid
from proxy.tokens.calls import Bearer
from proxy.tokens.credentials.file import CredentialFile, SourceTools
from proxy.tokens.credentials.source import AccessTokenCache, CredentialSource
from proxy.tokens.model import Token, TokenKey

__all__ = ["ImpersonatedServiceAccount"]

_ACCOUNT_PREFIX = "projects/-/serviceAccounts/"


class ImpersonatedServiceAccount(CredentialFile):
    """A target account, and the source credentials that may impersonate it."""

    kind = "impersonated_service_account"
    label = "impersonated service account"
    required_fields = ("service_account_impersonation_url", "source_credentials")
    object_fields = frozenset({"source_credentials"})
    mints_id_tokens = True

    def source(self, tools: SourceTools) -> CredentialSource:
        where = f"{self.path} (source_credentials)"
        inner = tools.read(where, self.digest, self.info["source_credentials"])
        if isinstance(inner, ImpersonatedServiceAccount):
            raise CredentialsInvalid(f"{where} are impersonated again; list the accounts between as delegates")
        target = self.impersonated_account()
        if target is None:
            raise CredentialsInvalid(f"{self.path}: its service_account_impersonation_url names no service account")
        delegates = self.info.get("delegates") or []
        if not isinstance(delegates, list) or not all(isinstance(name, str) for name in delegates):
            raise CredentialsInvalid(f"{self.path}: its delegates are not a list of service accounts")
        accounts = [name.removeprefix(_ACCOUNT_PREFIX) for name in delegates]
        return _ImpersonatedSource(inner.source(tools), target, accounts, tools)


class _ImpersonatedSource:
    """The tokens of the target account."""

    def __init__(self, inner: CredentialSource, account: str, delegates: list[str], tools: SourceTools) -> None:
        self._inner = inner
        self._account = account
        self._delegates = delegates
        self._tools = tools
        self._cache = AccessTokenCache(self._access_token, tools.clock)

    async def identity(self, key: TokenKey) -> Token:
        return await self._tools.iam.identity(self._inner, key, self._account, self._delegates)

    async def bearer(self, stale: Bearer | None = None) -> Bearer:
        return await self._cache.get(stale)

    async def principal(self) -> str:
        return self._account

    async def _access_token(self) -> Bearer:
        return await self._tools.iam.access_token(
            self._inner, self._account, self._delegates, self._tools.quota_project
        )

"""Credential files as credential source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from proxy.errors import AmbientUnsupported, CredentialsInvalid
from proxy.quoting import plain
from proxy.tokens.adc import CredentialFile, Kind, check
from proxy.tokens.ambient import Ambient, BearerCache
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.calls import Bearer, BlockingSend
from proxy.tokens.impersonation import IamCredentials
from proxy.tokens.model import Token, TokenKey, is_account
from proxy.tokens.subject import local_subject_token
from proxy.tokens.worker import Worker

__all__ = ["FileSource", "ImpersonatedFile", "source_of"]

_NAMES: Final[dict[Kind, str]] = {
    "authorized_user": "user credentials",
    "external_account": "workload identity federation",
    "external_account_authorized_user": "workforce identity federation",
}

_TARGET: Final = re.compile(r".*/serviceAccounts/(?P<account>[^/:]+):generateAccessToken")

_POOL: Final = re.compile(r"//iam\.googleapis\.com/(?P<pool>[\w./-]{1,200})/providers/")

_ACCOUNT_PREFIX: Final = "projects/-/serviceAccounts/"


class FileSource:
    """A key file, user credentials or federation, by google-auth."""

    def __init__(
        self,
        file: CredentialFile,
        worker: Worker,
        blocking: BlockingCalls,
        clock: Callable[[], float],
        quota_project: str | None,
    ) -> None:
        self._file = file
        self._worker = worker
        self._blocking = blocking
        self._clock = clock
        self._quota_project = quota_project
        self._principal: str | None = None
        self._fetch_on_thread: Callable[[BlockingSend], Bearer] | None = None
        self._cache = BearerCache(self._access_token, clock)

    async def identity(self, key: TokenKey) -> Token:
        if self._file.kind != "service_account":
            raise AmbientUnsupported(
                f"{_NAMES[self._file.kind]} ({self._file.path}) cannot mint an ID token for the audience "
                f"{key.audience}, for Google signs those for service accounts only. Three ways out: set "
                "gcp_impersonate_service_account on the route; or set GOOGLE_APPLICATION_CREDENTIALS to a service "
                "account's key file; or run where a metadata server is (Compute Engine, GKE, Cloud Run)"
            )

        def errand(send: BlockingSend) -> Token:
            from proxy.tokens import credentials  # google-auth is imported here, on the thread, and not before

            return credentials.identity(self._file, key, send, self._clock)

        return await self._worker.run(errand)

    async def bearer(self, stale: Bearer | None = None) -> Bearer:
        return await self._cache.get(stale)

    async def principal(self) -> str:
        info = self._file.info
        named = info.get("client_email") or info.get("account") or self._principal or _target(info)
        if isinstance(named, str) and named and plain(named) is not None:
            return named
        pool = _POOL.match(str(info.get("audience", "")))
        members = f"; principalSet://iam.googleapis.com/{pool['pool']}/*" if pool else ""
        return f"{_NAMES.get(self._file.kind, 'the service account')} ({self._file.path}{members})"

    async def _access_token(self) -> Bearer:
        """Fetch by credentials that are made anew, but for a refresh token: that one may be replaced in them.

        Federation that goes through a service account would otherwise go on with an exchanged token that Google does
        not take any more. Broken off or failed, credentials are not used again: their thread may still be at work.
        """
        fetch, self._fetch_on_thread = self._fetch_on_thread, None
        if fetch is None:
            subject_token = await local_subject_token(self._file, _target(self._file.info), self._blocking)
            fetch = await self._worker.run(partial(self._load, subject_token))
        fetched = await self._worker.run(fetch)
        if "refresh_token" in self._file.info:
            self._fetch_on_thread = fetch
        self._principal = fetched.principal
        return fetched

    def _load(self, subject_token: str | None, send: BlockingSend) -> Callable[[BlockingSend], Bearer]:
        del send
        from proxy.tokens import credentials  # as above

        return credentials.AccessTokens(self._file, self._quota_project, self._clock, subject_token).fetch


class ImpersonatedFile:
    """An `impersonated_service_account` file: its target account, reached by the credential inside."""

    def __init__(
        self,
        file: CredentialFile,
        inner: Ambient,
        iam: IamCredentials,
        clock: Callable[[], float],
        quota_project: str | None,
    ) -> None:
        target = _target(file.info)
        if target is None:
            raise CredentialsInvalid(f"{file.path}: its service_account_impersonation_url names no service account")
        delegates = file.info.get("delegates") or []
        if not isinstance(delegates, list) or not all(isinstance(name, str) for name in delegates):
            raise CredentialsInvalid(f"{file.path}: its delegates are not a list of service accounts")
        self._account: str = target
        self._delegates = [name.removeprefix(_ACCOUNT_PREFIX) for name in delegates]
        self._inner = inner
        self._iam = iam
        self._quota_project = quota_project
        self._cache = BearerCache(self._access_token, clock)

    async def identity(self, key: TokenKey) -> Token:
        return await self._iam.identity(self._inner, key, self._account, self._delegates)

    async def bearer(self, stale: Bearer | None = None) -> Bearer:
        return await self._cache.get(stale)

    async def principal(self) -> str:
        return self._account

    async def _access_token(self) -> Bearer:
        return await self._iam.access_token(self._inner, self._account, self._delegates, self._quota_project)


def source_of(
    file: CredentialFile,
    worker: Worker,
    blocking: BlockingCalls,
    iam: IamCredentials,
    clock: Callable[[], float],
    environment: Mapping[str, str],
) -> Ambient:
    """Return the credential source that a credential file is; CredentialsInvalid if it contradicts itself."""
    quota_project = environment.get("GOOGLE_CLOUD_QUOTA_PROJECT") or _text(file.info.get("quota_project_id"))
    if file.kind != "impersonated_service_account":
        return FileSource(file, worker, blocking, clock, quota_project)
    where = f"{file.path} (source_credentials)"
    info = file.info["source_credentials"]
    kind = check(info, where)
    if kind == "impersonated_service_account":
        raise CredentialsInvalid(f"{where} are impersonated again; list the accounts between as delegates")
    inner = FileSource(CredentialFile(where, file.digest, kind, info), worker, blocking, clock, quota_project)
    return ImpersonatedFile(file, inner, iam, clock, quota_project)


def _target(info: Mapping[str, Any]) -> str | None:
    """Return the service account that a file says to impersonate, or None."""
    target = _TARGET.fullmatch(str(info.get("service_account_impersonation_url", "")))
    return target["account"] if target is not None and is_account(target["account"]) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

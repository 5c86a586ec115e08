"""Mints ID tokens with Google's credentials; the table in `proxy.tokens` says what each can do, and how.

Nothing is read, imported or contacted before the first mint. The lookup is repeated at every mint, and by polling in
between (`check_for_change`), so that a change takes effect within seconds; `credentials.active` says what a change is.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import aiohttp

from proxy.tokens.aiohttp_resolver import AiohttpResolver
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.calls import Reply
from proxy.tokens.credentials.active import ActiveCredentials
from proxy.tokens.credentials.file import CredentialFile, SourceTools
from proxy.tokens.credentials.google_auth_threads import GoogleAuthThreads
from proxy.tokens.credentials.iam_credentials import IamCredentials
from proxy.tokens.credentials.kinds import credential
from proxy.tokens.credentials.members import is_near
from proxy.tokens.credentials.metadata_server import MetadataServer
from proxy.tokens.credentials.source import CredentialSource
from proxy.tokens.http_client import HttpClient
from proxy.tokens.model import Token, TokenKey

__all__ = ["CredentialInfo", "GoogleMint"]

_CONNECT_SECONDS: Final = 4.0
_DIRECT_CONNECT_SECONDS: Final = 2.0


class CredentialInfo(NamedTuple):
    """A credential source, to be shown."""

    file: CredentialFile | None
    """None for the metadata server."""
    place: str
    """Path of the file, or where the metadata server is asked."""
    principal: str
    """An e-mail where it is known, else some words."""

    @property
    def kind(self) -> str:
        """The `type` of the file, or `metadata`."""
        return self.file.kind if self.file is not None else MetadataServer.kind

    @property
    def label(self) -> str:
        """Its name in sentences: `key file`, `metadata server` …"""
        return self.file.label if self.file is not None else MetadataServer.label


class GoogleMint:
    """Mints ID tokens with the credentials that the environment has (Application Default Credentials).

    `environment` is read at every mint. `resolver`, for tests, says where Google's names lead. Every part of a mint has
    a deadline of its own; a cancelled mint leaves nothing behind.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str] = os.environ,
        resolver: aiohttp.abc.AbstractResolver | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._environment = environment
        self._clock = clock
        self._blocking = BlockingCalls()
        resolver = resolver or AiohttpResolver()
        self._direct = HttpClient(resolver, self._blocking, direct=True, connect_seconds=_DIRECT_CONNECT_SECONDS)
        self._outside = HttpClient(resolver, self._blocking, direct=False, connect_seconds=_CONNECT_SECONDS)
        self._threads = GoogleAuthThreads(self._send)
        self._iam = IamCredentials(self._outside.send)
        self._active = ActiveCredentials(
            environment,
            self._blocking,
            metadata_server=lambda: MetadataServer(self._direct.send, environment, clock),
            file_source=self._file_source,
        )
        self.on_change: Callable[[int, str], None] | None = None
        """Called when the credentials have changed: the number of the new generation, and the new ones in words."""
        self._minting: set[asyncio.Timeout] = set()
        self._active.on_change = self._changed

    async def __call__(self, key: TokenKey) -> Token:
        """Return a new token for `key`, from the credentials in use when it arrives.

        Raises a leaf of `proxy.errors.TokenFailure`. A mint that is under way when they change begins again.
        """
        while True:
            source, generation = await self._active.source()
            until_changed = asyncio.timeout(None)
            try:
                async with until_changed:
                    self._minting.add(until_changed)
                    try:
                        token = await self._mint(source, key)
                    finally:
                        self._minting.discard(until_changed)
            except TimeoutError:
                if not until_changed.expired():
                    raise
                continue
            if key.impersonate is None:
                generation = self._active.minted(source, token, generation)
            return replace(token, generation=generation)

    async def check_for_change(self, *, tokens_kept: bool) -> None:
        """Check whether the credentials have changed: the file, or the account at the metadata server.

        The metadata server is asked only if there are tokens to be dropped.
        """
        await self._active.check(ask_account=tokens_kept)

    async def credential_info(self) -> CredentialInfo:
        """Return the credential source and its principal. Raises a leaf of `proxy.errors.TokenFailure`.

        The metadata server is asked for it; a credential file is only read.
        """
        source, _ = await self._active.source()
        if isinstance(source, MetadataServer):
            return CredentialInfo(None, source.host, await source.email())
        file = self._active.file
        assert file is not None  # noqa: S101 - a source that is no metadata server was made of a file
        return CredentialInfo(file, file.path, await source.principal())

    @property
    def source_kind(self) -> str:
        """The kind of the credentials in use: the `type` of the file, or `metadata`."""
        file = self._active.file
        return file.kind if file is not None else MetadataServer.kind

    async def close(self) -> None:
        """Cancel all mints and close all connections; a mint after this raises TokenUnavailable."""
        await self._threads.close()
        await self._direct.close()
        await self._outside.close()

    def _file_source(self, file: CredentialFile) -> CredentialSource:
        tools = SourceTools(
            threads=self._threads,
            blocking=self._blocking,
            iam=self._iam,
            clock=self._clock,
            quota_project=file.quota_project(self._environment),
            read=credential,
        )
        return file.source(tools)

    async def _mint(self, source: CredentialSource, key: TokenKey) -> Token:
        if key.impersonate is None:
            return await source.identity(key)
        return await self._iam.identity(source, key, key.impersonate, key.delegates)

    def _changed(self, generation: int, now_in_words: str) -> None:
        now = asyncio.get_running_loop().time()
        for until_changed in self._minting:
            if not until_changed.expired():
                until_changed.reschedule(now)
        if self.on_change is not None:
            self.on_change(generation, now_in_words)

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        """Send for google-auth, which also asks metadata servers (AWS): no proxy for those."""
        http = self._direct if url.startswith("http://") and is_near(url) else self._outside
        return await http.send(method, url, headers, body)

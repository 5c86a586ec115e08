"""The current credentials: the one place that notices a change of them.

They change when

* another file is named, a file appears or disappears, or its content changes;
* the file cannot be used any more (missing, unreadable, broken): then there are no credentials, and no mints;
* the metadata server has another account than before, or none.

Each change begins a new generation, and all tokens of earlier ones are void. A file system or a metadata server that
fails or does not answer is no change. A broken file is read again a moment later, since it may be half written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from proxy.errors import CredentialsInvalid, Failure
from proxy.tokens.blocking import FILE_SECONDS, BlockingCalls
from proxy.tokens.credentials import lookup
from proxy.tokens.credentials.file import CredentialFile
from proxy.tokens.credentials.metadata_server import MetadataServer
from proxy.tokens.credentials.source import CredentialSource
from proxy.tokens.model import Token

__all__ = ["ActiveCredentials"]

_READS_OF_BROKEN_FILE: Final = 3
_PAUSE_SECONDS: Final = 0.2

_METADATA: Final = b"metadata server"
_BROKEN: Final = b"none that can be used"


class ActiveCredentials:
    """Looks up the credentials, and keeps their source until they change.

    `metadata_server` and `file_source` make a source; `file_source` may raise CredentialsInvalid.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        blocking: BlockingCalls,
        *,
        metadata_server: Callable[[], MetadataServer],
        file_source: Callable[[CredentialFile], CredentialSource],
    ) -> None:
        self._environment = environment
        self._blocking = blocking
        self._metadata_server = metadata_server
        self._file_source = file_source
        self._lock = asyncio.Lock()
        self.on_change: Callable[[int, str], None] | None = None
        """Called with the number of the new generation, and the new credentials in words."""
        self.file: CredentialFile | None = None
        """The file of the source; None for the metadata server."""
        self._generation = 0
        self._known: tuple[str, bytes] | None = None
        """Path and digest of the file, or a name for what is there instead; None before the first lookup."""
        self._source: CredentialSource | None = None
        self._account: str | None = None
        """The account that the metadata server named last."""
        self._principal: str | None = None
        """The principal of the metadata server's last token."""

    async def source(self) -> tuple[CredentialSource, int]:
        """Return the source and its generation. Raises a leaf of TokenFailure."""
        async with self._lock:
            file = await self._find()
            known = (file.path, file.digest) if file is not None else ("", _METADATA)
            if self._source is None or known != self._known:
                try:
                    source = self._file_source(file) if file is not None else self._metadata_server()
                except CredentialsInvalid:
                    self._note(("", _BROKEN), None, None)
                    raise
                self._note(known, source, file)
                return source, self._generation
            return self._source, self._generation

    async def check(self, *, ask_account: bool) -> None:
        """Check whether they have changed; raises nothing. The metadata server is asked for its account if wanted."""
        try:
            source, generation = await self.source()
            if ask_account and isinstance(source, MetadataServer):
                account = await source.account()
                if generation == self._generation:
                    if self._account is not None and self._account != account:
                        self._begin_with_metadata_server()
                    self._account = account
        except Failure:
            return

    def minted(self, source: CredentialSource, token: Token, generation: int) -> int:
        """Note the principal of a token that the source minted for itself; return the generation of that token."""
        if not isinstance(source, MetadataServer) or source is not self._source or token.principal is None:
            return generation
        if self._principal is not None and self._principal != token.principal:
            self._begin_with_metadata_server()
        self._principal = token.principal
        return self._generation

    def _begin_with_metadata_server(self) -> None:
        """Begin a generation with the metadata server: its earlier tokens belong to another account."""
        self._begin(("", _METADATA), self._metadata_server(), None)

    async def _find(self) -> CredentialFile | None:
        """Return the credential file. Raises CredentialsInvalid, which is a change, and TokenTimeout."""
        for attempt in range(_READS_OF_BROKEN_FILE):
            try:
                return await self._blocking.run(
                    partial(lookup.find, self._environment, self.file),
                    resource=lookup.label(self._environment),
                    seconds=FILE_SECONDS,
                )
            except lookup.FileSystemFailed:
                raise
            except CredentialsInvalid:
                if self._source is None or attempt == _READS_OF_BROKEN_FILE - 1:
                    self._note(("", _BROKEN), None, None)
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError  # The last attempt returned or raised.

    def _note(self, known: tuple[str, bytes], source: CredentialSource | None, file: CredentialFile | None) -> None:
        if self._known is None:
            self._known, self._source, self.file = known, source, file
        elif known != self._known:
            self._begin(known, source, file)

    def _begin(self, known: tuple[str, bytes], source: CredentialSource | None, file: CredentialFile | None) -> None:
        self._known, self._source, self.file = known, source, file
        self._account = self._principal = None
        self._generation += 1
        if self.on_change is not None:
            self.on_change(self._generation, file.path if file is not None else known[1].decode())

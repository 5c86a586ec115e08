"""What all kinds of credential files have in common. A kind is a subclass in a file of its own (`kinds` lists them)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from proxy.errors import CredentialsInvalid
from proxy.quoting import plain
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.credentials.google_auth_threads import GoogleAuthThreads
from proxy.tokens.credentials.iam_credentials import IamCredentials
from proxy.tokens.credentials.members import check_url, is_filled
from proxy.tokens.credentials.source import CredentialSource
from proxy.tokens.credentials.subject_token import SubjectTokenSource
from proxy.tokens.model import is_account

__all__ = ["UNIVERSE", "UNSUPPORTED_UNIVERSE", "CredentialFile", "SourceTools"]

UNIVERSE: Final = "googleapis.com"
"""The only universe domain whose credentials can be used."""

UNSUPPORTED_UNIVERSE: Final = "only Google's public cloud is supported"
"""The end of a sentence about another universe."""

_URL_FIELDS: Final = ("token_uri", "token_url", "token_info_url", "revoke_url", "service_account_impersonation_url")
"""Members that say where tokens, keys or proofs of them are sent."""

_POOL: Final = re.compile(r"//iam\.googleapis\.com/(?P<pool>[\w./-]{1,200})/providers/")

_TARGET: Final = re.compile(r".*/serviceAccounts/(?P<account>[^/:]+):generateAccessToken")


@dataclass(frozen=True, slots=True)
class SourceTools:
    """What the source of a credential file works with."""

    threads: GoogleAuthThreads
    """Threads for google-auth."""
    blocking: BlockingCalls
    """Threads for files and executables."""
    iam: IamCredentials
    """Impersonation."""
    clock: Callable[[], float]
    """Seconds since the epoch."""
    quota_project: str | None
    """The project that pays for API calls, or None."""
    read: Callable[[str, bytes, Mapping[str, Any]], CredentialFile]
    """Makes the credential of a JSON object, given its place and the digest of its file (`kinds`)."""


class CredentialFile(ABC):
    """A credential file that was read: one subclass for each kind. Its content is not in its repr."""

    kind: ClassVar[str]
    """The `type` in the file."""
    label: ClassVar[str]
    """Its name in sentences."""
    required_fields: ClassVar[tuple[str, ...]] = ()
    """Members without which it cannot be used."""
    object_fields: ClassVar[frozenset[str]] = frozenset()
    """Those of them that are JSON objects; the others are strings."""
    supported: ClassVar[bool] = True
    """False if `check` refuses every file of this kind."""
    rejection_remedy: ClassVar[str] = ""
    """What to do where Google rejects the credential; `""` if the sentence of `rejection` says it."""
    mints_id_tokens: ClassVar[bool] = False
    """True if it can mint an ID token for itself, without impersonation."""

    def __init__(self, path: str, digest: bytes, info: Mapping[str, Any]) -> None:
        self.path = path
        """The path, or another place to be named in a sentence."""
        self.digest = digest
        """SHA-256 of the content. Times and sizes do not show every change: they can be set, or stay the same."""
        self.info = info
        """The JSON object."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def check(self) -> None:
        """Raise CredentialsInvalid, with one sentence, unless the file can be used.

        The sentence has only names of members of the content.
        """
        where = f"{self.path} ({self.kind})"
        missing = [
            name for name in self.required_fields if not is_filled(self.info.get(name), name in self.object_fields)
        ]
        if missing:
            raise CredentialsInvalid(f"{where} has no {', '.join(missing)}; create the file again")
        for name in _URL_FIELDS:
            check_url(self.info.get(name), name, where)
        if self.info.get("universe_domain") not in (None, "", UNIVERSE):
            raise CredentialsInvalid(f"{self.path} belongs to another universe than {UNIVERSE}: {UNSUPPORTED_UNIVERSE}")

    @abstractmethod
    def source(self, tools: SourceTools) -> CredentialSource:
        """Return the credential source of this file; CredentialsInvalid if the file contradicts itself."""

    @property
    def subject_token_source(self) -> SubjectTokenSource | None:
        """Where its subject token comes from; None for a kind without one."""
        return None

    def principal(self, email: str | None) -> str:
        """Return the name of its identity, for a sentence; `email` is what the last access token came with."""
        name = self.principal_name() or email or self.impersonated_account()
        if isinstance(name, str) and name and plain(name) is not None:
            return name
        return f"{self.unnamed_principal} ({self.path}{self.pool_members()})"

    @property
    def unnamed_principal(self) -> str:
        """Its name in sentences if its identity has none."""
        return self.label

    def principal_name(self) -> object:
        """Return the identity that the file names, if it does."""
        return self.info.get("account")

    def pool_members(self) -> str:
        """Return how IAM names all its identities, to be appended to a sentence; `""` where it has no pool."""
        pool = _POOL.match(str(self.info.get("audience", "")))
        return f"; principalSet://iam.googleapis.com/{pool['pool']}/*" if pool else ""

    def impersonated_account(self) -> str | None:
        """Return the service account that the file itself impersonates, or None."""
        target = _TARGET.fullmatch(str(self.info.get("service_account_impersonation_url", "")))
        return target["account"] if target is not None and is_account(target["account"]) else None

    def quota_project(self, environment: Mapping[str, str]) -> str | None:
        """Return the project that pays for API calls, or None."""
        named = self.info.get("quota_project_id")
        return environment.get("GOOGLE_CLOUD_QUOTA_PROJECT") or (named if isinstance(named, str) else None)

    def google_auth_info(self) -> dict[str, Any]:
        """Return the content for google-auth, which takes an empty `universe_domain` for another universe."""
        return {name: value for name, value in self.info.items() if name != "universe_domain"}

    # What a failure means.

    def load_failure(self, reason: str) -> CredentialsInvalid:
        """Return the failure for a file that google-auth cannot load; `reason` is appended."""
        return CredentialsInvalid(f"{self.path} ({self.kind}) cannot be used{reason}")

    def rejection(self, answer: str, clock: str) -> str:
        """Return what to do where Google rejects the credential (`invalid_grant`); `clock` says if a clock is wrong.

        `answer` is Google's in parentheses, or `""`.
        """
        return (
            f"Google does not accept the user credentials in {self.path}{answer}: run `gcloud auth "
            "application-default login`"
        )

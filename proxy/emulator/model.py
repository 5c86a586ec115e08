"""The values of the emulated Google: what can go wrong on demand, who may do what, what was handed out."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

__all__ = ["ENDPOINTS", "SCOPE", "Access", "Endpoint", "Fault", "Mint", "Permission", "Role", "are_scopes", "unique_id"]

Endpoint: TypeAlias = Literal["metadata", "iam", "oauth", "sts", "projects", "aws", "azure"]
"""What a client calls: metadata server, IAM Credentials, OAuth token endpoint, token exchange, Resource Manager; and
the metadata servers of AWS and Azure, where federation begins."""

ENDPOINTS: Final[tuple[Endpoint, ...]] = ("metadata", "iam", "oauth", "sts", "projects", "aws", "azure")

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
"""The scope that lets a caller use every Google Cloud API, IAM Credentials included."""

SCOPE_PREFIX: Final = "https://www.googleapis.com/auth/"
OPEN_ID_SCOPES: Final = frozenset({"openid", "email", "profile"})


class Fault(enum.Enum):
    """What an endpoint does instead of its work; the value is its name on the control endpoint."""

    TOO_MANY_REQUESTS = "too-many-requests"
    """429, shaped as the endpoint's errors are."""
    SERVER_ERROR = "server-error"
    """500, shaped as the endpoint's errors are."""
    DENIED = "denied"
    """403, shaped as the endpoint's errors are."""
    REJECTED = "rejected"
    """Whoever asks is not known any more: 400 `invalid_grant`, 401, or 404 where there is no account to ask for."""
    HANG = "hang"
    """No answer, until the client goes or the server closes."""
    RESET = "reset"
    """The TCP connection is reset."""
    JUNK = "junk"
    """200 with what is neither a JWT nor JSON."""
    HTML = "html"
    """200 with a web page."""
    EXPIRED = "expired"
    """The right answer, but its token expired an hour ago."""
    SLOW = "slow"
    """The right answer, after `Google.slow_seconds`."""


class Permission(enum.Enum):
    """Permissions on a service account that IAM Credentials looks at."""

    GET_OPEN_ID_TOKEN = "iam.serviceAccounts.getOpenIdToken"  # noqa: S105 – a name
    GET_ACCESS_TOKEN = "iam.serviceAccounts.getAccessToken"  # noqa: S105 – a name
    IMPLICIT_DELEGATION = "iam.serviceAccounts.implicitDelegation"


class Role(enum.Enum):
    """Roles on a service account that grant them."""

    OPEN_ID_TOKEN_CREATOR = "roles/iam.serviceAccountOpenIdTokenCreator"  # noqa: S105 – a name
    """ID tokens, and nothing else."""
    TOKEN_CREATOR = "roles/iam.serviceAccountTokenCreator"  # noqa: S105 – a name
    """ID tokens, access tokens, and being a link of a delegation chain."""

    @property
    def permissions(self) -> frozenset[Permission]:
        """What the role lets its holder do."""
        if self is Role.OPEN_ID_TOKEN_CREATOR:
            return frozenset({Permission.GET_OPEN_ID_TOKEN})
        return frozenset(Permission)


class Mint(NamedTuple):
    """One ID token as it was handed out; a token handed out twice is two of these."""

    endpoint: Endpoint
    """Who handed it out."""
    audience: str
    """Its `aud`."""
    email: str
    """The account it speaks for, whether or not the token says so."""
    time: float
    """When it was handed out, in seconds since the epoch."""
    expires_at: float
    """Its `exp`, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What an access token stands for."""

    principal: str
    """Who holds it: an account's e-mail, a user's, or a federated principal."""
    scopes: frozenset[str]
    """What it may be used for."""
    expires_at: float
    """Seconds since the epoch."""


def unique_id(email: str) -> str:
    """Return the account's numeric id, 21 digits, the `sub` of its tokens; the same e-mail has the same id always."""
    return "1" + str(int.from_bytes(hashlib.sha256(email.encode()).digest(), "big"))[-20:]


def are_scopes(scopes: Iterable[str]) -> bool:
    """Return whether all of them are scopes as Google has them: URLs of one prefix, and OpenID's three words."""
    return all(scope in OPEN_ID_SCOPES or scope.removeprefix(SCOPE_PREFIX) not in ("", scope) for scope in scopes)

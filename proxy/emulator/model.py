"""The value types of the emulated Google: endpoints, faults, permissions, roles, pods, mints, access."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar, get_args

__all__ = [
    "ENDPOINTS",
    "SCOPE",
    "Access",
    "Endpoint",
    "Fault",
    "Mint",
    "PendingFault",
    "Permission",
    "Pod",
    "Role",
    "are_scopes",
    "unique_id",
]

Endpoint: TypeAlias = Literal["metadata", "iam", "oauth", "sts", "projects", "keys", "aws", "azure"]
"""What a client calls: the metadata server, IAM Credentials, the OAuth token endpoint, the token exchange, Resource
Manager, the public keys of tokens, and for federation the metadata servers of AWS and Azure."""

ENDPOINTS: Final[tuple[Endpoint, ...]] = get_args(Endpoint)
"""All endpoints."""

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
"""The scope of all Google Cloud APIs, including IAM Credentials."""

SCOPE_PREFIX: Final = "https://www.googleapis.com/auth/"
OPEN_ID_SCOPES: Final = frozenset({"openid", "email", "profile"})

AnyFault = TypeVar("AnyFault", bound=enum.Enum)


class Fault(enum.Enum):
    """A failure of an endpoint on demand; the value is its name for `/emulator/faults`."""

    TOO_MANY_REQUESTS = "too-many-requests"
    """429, in the endpoint's error format."""
    SERVER_ERROR = "server-error"
    """500, in the endpoint's error format."""
    DENIED = "denied"
    """403, in the endpoint's error format."""
    REJECTED = "rejected"
    """The caller's identity is revoked: 400 `invalid_grant`, 401, or 404 from the metadata server."""
    HANG = "hang"
    """No response, until the client disconnects or the server stops."""
    RESET = "reset"
    """The TCP connection is reset."""
    JUNK = "junk"
    """200 with content that is neither a JWT nor JSON."""
    HTML = "html"
    """200 with a web page."""
    EXPIRED = "expired"
    """The normal response, but its token expired an hour ago."""
    SLOW = "slow"
    """The normal response, after `Google.slow_seconds`."""


class PendingFault(Generic[AnyFault]):
    """A fault for the next requests."""

    def __init__(self) -> None:
        self.fault: AnyFault | None = None
        """The fault; None if there is none."""
        self.times: int | None = None
        """For how many more requests; None: until it is removed."""

    def set(self, fault: AnyFault | None, times: int | None) -> None:
        """Replace the fault; None or 0 times removes it."""
        self.fault, self.times = (None, None) if fault is None or times == 0 else (fault, times)

    def take(self) -> AnyFault | None:
        """Return the fault for the current request, and count it; None if there is none."""
        fault = self.fault
        if self.times is not None:
            self.set(fault, self.times - 1)
        return fault

    def state(self) -> dict[str, str | int | None] | None:
        """Return name and times as JSON data; None if there is none."""
        return None if self.fault is None else {"fault": self.fault.value, "times": self.times}


class Permission(enum.Enum):
    """The permissions on a service account that IAM Credentials checks."""

    GET_OPEN_ID_TOKEN = "iam.serviceAccounts.getOpenIdToken"  # noqa: S105 – a name
    GET_ACCESS_TOKEN = "iam.serviceAccounts.getAccessToken"  # noqa: S105 – a name
    IMPLICIT_DELEGATION = "iam.serviceAccounts.implicitDelegation"


class Role(enum.Enum):
    """The roles on a service account that contain these permissions."""

    OPEN_ID_TOKEN_CREATOR = "roles/iam.serviceAccountOpenIdTokenCreator"  # noqa: S105 – a name
    """ID tokens only."""
    TOKEN_CREATOR = "roles/iam.serviceAccountTokenCreator"  # noqa: S105 – a name
    """ID tokens, access tokens, and being a delegate."""
    WORKLOAD_IDENTITY_USER = "roles/iam.workloadIdentityUser"
    """ID tokens and access tokens: the role of a Kubernetes account that is linked to a service account."""

    @property
    def permissions(self) -> frozenset[Permission]:
        """The permissions that the role contains."""
        if self is Role.OPEN_ID_TOKEN_CREATOR:
            return frozenset({Permission.GET_OPEN_ID_TOKEN})
        if self is Role.WORKLOAD_IDENTITY_USER:
            return frozenset({Permission.GET_OPEN_ID_TOKEN, Permission.GET_ACCESS_TOKEN})
        return frozenset(Permission)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of GKE, for whose Kubernetes account the metadata server speaks."""

    namespace: str
    """Namespace of the Kubernetes account."""
    name: str
    """Name of the Kubernetes account."""
    annotation: str | None = None
    """The service account in its annotation `iam.gke.io/gcp-service-account`; None: it has none (direct federation)."""


class Mint(NamedTuple):
    """One response with an ID token; a cached token that is returned twice makes two mints."""

    endpoint: Endpoint
    """The endpoint that issued it."""
    audience: str
    """Its `aud`."""
    email: str
    """E-mail of its account, whether or not the token contains it."""
    time: float
    """When it was issued, in seconds since the epoch."""
    expires_at: float
    """Its `exp`, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What an access token allows."""

    principal: str
    """The e-mail of an account or a user, or a federated principal."""
    scopes: frozenset[str]
    """The scopes of the token."""
    expires_at: float
    """Its expiry in seconds since the epoch."""


def unique_id(email: str) -> str:
    """Return the account's numeric id, 21 digits, the `sub` of its tokens; it depends on the e-mail only."""
    return "1" + str(int.from_bytes(hashlib.sha256(email.encode()).digest(), "big"))[-20:]


def are_scopes(scopes: Iterable[str]) -> bool:
    """Return True if all are valid: URLs with Google's prefix, or one of OpenID's three scopes."""
    return all(scope in OPEN_ID_SCOPES or scope.removeprefix(SCOPE_PREFIX) not in ("", scope) for scope in scopes)

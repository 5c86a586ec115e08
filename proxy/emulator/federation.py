"""Workload identity federation: the providers that the token exchange trusts, and their subject tokens.

* `OidcProvider`   a Kubernetes cluster or Azure: the subject token is an ID token for this provider
* `AwsProvider`    AWS: the subject token is a GetCallerIdentity request, signed with an AWS access key
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

from proxy.emulator import sigv4
from proxy.emulator.jwts import Key, TokenRefused, check_times, parse

__all__ = [
    "POOL_PROJECT_NUMBER",
    "AwsKey",
    "AwsProvider",
    "Federation",
    "OidcProvider",
    "Provider",
    "SubjectRefused",
    "UnknownProvider",
]

POOL_PROJECT_NUMBER: Final = "123456789012"
"""Number of the project that the workload identity pool belongs to."""

POOL: Final = f"projects/{POOL_PROJECT_NUMBER}/locations/global/workloadIdentityPools/emulated"
JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105 – a name
AWS_TYPE: Final = "urn:ietf:params:aws:token-type:aws4_request"
JWT_TYPES: Final = frozenset({JWT_TYPE, ID_TOKEN_TYPE})
SUBJECT_TYPES: Final = JWT_TYPES | {AWS_TYPE}
"""All types of subject tokens."""

MAX_LIFETIME_SECONDS: Final = 24 * 3600
SKEW_SECONDS: Final = 60
MAX_SIGNATURE_AGE_SECONDS: Final = 15 * 60
ROLE_SECONDS: Final = 3600
ROLE_KEY_MIN_REMAINING_SECONDS: Final = 300
AWS_ACCOUNT: Final = "210987654321"


class SubjectRefused(Exception):
    """A provider rejects a subject token. The text is the reason and quotes nothing of the token."""


class UnknownProvider(Exception):
    """There is no provider with this audience."""


class Provider(Protocol):
    """A provider of a workload identity pool."""

    audience: str
    """Its full resource name: `//iam.googleapis.com/projects/…/providers/…`."""

    def subject(self, token_type: str, subject_token: str) -> str:
        """Return the subject that the token proves; raises SubjectRefused."""


class Federation:
    """The pool and its providers: `cluster`, `azure`, `aws`, and those that `add_provider` adds.

    `clock` returns seconds since the epoch. Providers add every secret that they issue to `issued_secrets`.
    """

    def __init__(self, clock: Callable[[], float], issued_secrets: set[str]) -> None:
        provider = f"//iam.googleapis.com/{POOL}/providers"
        self.cluster = OidcProvider(f"{provider}/cluster", "https://cluster.emulated.example", clock, issued_secrets)
        """A Kubernetes cluster whose pods get ID tokens for this provider."""
        self.azure = OidcProvider(
            f"{provider}/azure", "https://sts.windows.net/emulated/", clock, issued_secrets, accepts=("api://emulated",)
        )
        """Azure's managed identities. Their ID tokens have the audience `api://emulated`."""
        self.aws = AwsProvider(f"{provider}/aws", clock, issued_secrets)
        """An AWS account."""
        self._providers: dict[str, Provider] = {}
        for known in (self.cluster, self.azure, self.aws):
            self.add_provider(known)

    def add_provider(self, provider: Provider) -> None:
        """Add a provider; it replaces one with the same audience."""
        self._providers[provider.audience] = provider

    def remove_provider(self, audience: str) -> None:
        """Remove the provider with this audience, if there is one."""
        self._providers.pop(audience, None)

    def exchange(self, audience: str, token_type: str, subject_token: str) -> str:
        """Return the IAM principal of a subject token.

        Raises UnknownProvider and SubjectRefused.
        """
        if audience not in self._providers:
            raise UnknownProvider(audience)
        return self.principal(audience, self._providers[audience].subject(token_type, subject_token))

    @staticmethod
    def principal(audience: str, subject: str) -> str:
        """Return the IAM principal of a subject in the pool of a provider."""
        pool = audience.removeprefix("//iam.googleapis.com/").partition("/providers/")[0]
        return f"principal://iam.googleapis.com/{pool}/subject/{subject}"


class OidcProvider:
    """An issuer of ID tokens. Their audience is one of `accepts`, by default the provider's own name."""

    def __init__(
        self,
        audience: str,
        issuer: str,
        clock: Callable[[], float],
        issued_secrets: set[str],
        accepts: tuple[str, ...] = (),
    ) -> None:
        self.audience = audience
        self.issuer = issuer
        """The `iss` of its tokens."""
        # By default, Google accepts the name of a provider with and without the scheme.
        self.accepts = accepts or (f"https:{audience}", audience)
        """The allowed values of `aud`."""
        self._clock = clock
        self._issued_secrets = issued_secrets

    @cached_property
    def key(self) -> Key:
        """The key that signs its tokens; can be set before it is used."""
        return Key()

    def token(self, subject: str, *, audience: str | None = None, lifetime_seconds: int = 3600) -> str:
        """Return a new ID token for `subject`; with a negative lifetime it has expired."""
        now = int(self._clock())
        claims: dict[str, object] = {"iss": self.issuer, "sub": subject, "aud": audience or self.accepts[0]}
        token = self.key.sign({**claims, "iat": now + min(0, lifetime_seconds - 1), "exp": now + lifetime_seconds})
        self._issued_secrets.add(token)
        return token

    def subject(self, token_type: str, subject_token: str) -> str:
        """Return the `sub` of a valid ID token of this issuer for this provider; raises SubjectRefused."""
        if token_type not in JWT_TYPES:
            raise SubjectRefused("The subject_token_type is not the one that the provider takes.")
        try:
            claims = parse(subject_token).verified({self.key.key_id: self.key.public_pem})
            if claims.get("iss") != self.issuer:
                raise SubjectRefused("The issuer in ID Token does not match the expected one.")
            if claims.get("aud") not in self.accepts:
                raise SubjectRefused("The audience in ID Token does not match the expected audience.")
            issued, expires = check_times(claims, self._clock(), skew_seconds=SKEW_SECONDS)
        except TokenRefused as exc:
            raise SubjectRefused(f"The ID Token is invalid: {exc.flaw.value}.") from None
        if expires - issued > MAX_LIFETIME_SECONDS:
            raise SubjectRefused("The ID Token is valid for longer than 24 hours.")
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= 127:
            raise SubjectRefused("The mapped attribute google.subject must be from 1 to 127 octets.")
        return subject


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsKey:
    """An AWS access key. The repr does not show its secrets."""

    access_key_id: str
    """Its id: `AKIA…`, or `ASIA…` for a temporary key."""
    secret_access_key: str = field(repr=False)
    """The key of signatures."""
    session_token: str | None = field(repr=False)
    """Sent with every request that a temporary key signs; None for a permanent key."""
    arn: str
    """The ARN of its owner."""
    expires_at: float | None
    """Seconds since the epoch; None for a permanent key."""


class AwsProvider:
    """An AWS account with the access keys of its users and roles."""

    def __init__(self, audience: str, clock: Callable[[], float], issued_secrets: set[str]) -> None:
        self.audience = audience
        self._clock = clock
        self._issued_secrets = issued_secrets
        self._keys: dict[str, AwsKey] = {}
        self._role_keys: dict[str, AwsKey] = {}

    def user_key(self, name: str) -> AwsKey:
        """Return a new permanent key of a user, for `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`."""
        return self._add("AKIA", f"arn:aws:iam::{AWS_ACCOUNT}:user/{name}", None)

    def role_key(self, role: str, *, lifetime_seconds: float = ROLE_SECONDS) -> AwsKey:
        """Return the temporary key of a machine with this role; a new one five minutes before it expires."""
        known = self._role_keys.get(role)
        if known and known.expires_at and known.expires_at - self._clock() > ROLE_KEY_MIN_REMAINING_SECONDS:
            return known
        expires_at = self._clock() + lifetime_seconds
        key = self._role_keys[role] = self._add("ASIA", self.role_arn(role), expires_at)
        return key

    @staticmethod
    def role_arn(role: str) -> str:
        """Return the ARN of a machine with this role."""
        return f"arn:aws:sts::{AWS_ACCOUNT}:assumed-role/{role}/i-0emulated"

    def revoke(self, access_key_id: str) -> None:
        """Revoke an access key."""
        self._keys.pop(access_key_id, None)

    def subject(self, token_type: str, subject_token: str) -> str:
        """Return the ARN of the key that signed the request; raises SubjectRefused."""
        if token_type != AWS_TYPE:
            raise SubjectRefused("The subject_token_type is not the one that the provider takes.")
        try:
            request = sigv4.parse(subject_token)
            key = self._key_of(request)
            request.verify(key.secret_access_key)
        except sigv4.NotSigned as exc:
            raise SubjectRefused(f"The AWS request is not accepted: {exc}.") from None
        # Without this check, a request that was signed for another provider would be accepted here.
        if request.target not in (self.audience, f"https:{self.audience}"):
            raise SubjectRefused("The x-goog-cloud-target-resource of the AWS request is another provider.")
        if abs(self._clock() - request.time) > MAX_SIGNATURE_AGE_SECONDS:
            raise SubjectRefused("The AWS request is not accepted: SignatureExpired: it was signed at another time.")
        return key.arn

    def _key_of(self, request: sigv4.SignedRequest) -> AwsKey:
        key = self._keys.get(request.access_key_id)
        if key is None:
            raise sigv4.NotSigned("InvalidClientTokenId")
        if not hmac.compare_digest((key.session_token or "").encode(), (request.session_token or "").encode()):
            raise sigv4.NotSigned("InvalidClientTokenId: the session token is not that of the key")
        if key.expires_at is not None and key.expires_at <= self._clock():
            raise sigv4.NotSigned("ExpiredToken")
        return key

    def _add(self, prefix: str, arn: str, expires_at: float | None) -> AwsKey:
        key = AwsKey(
            access_key_id=f"{prefix}{secrets.token_hex(8).upper()}",
            secret_access_key=secrets.token_urlsafe(30),
            session_token=None if expires_at is None else secrets.token_urlsafe(120),
            arn=arn,
            expires_at=expires_at,
        )
        self._keys[key.access_key_id] = key
        self._issued_secrets |= {secret for secret in (key.secret_access_key, key.session_token) if secret}
        return key

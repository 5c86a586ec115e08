"""Workload identity federation: the providers that the token exchange trusts, and what a subject token proves to each.

* `OidcProvider`   a Kubernetes cluster or Azure: an ID token of theirs, signed, for this provider, not expired
* `AwsProvider`    AWS: a GetCallerIdentity request, signed with a key that AWS handed out
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
POOL: Final = f"projects/{POOL_PROJECT_NUMBER}/locations/global/workloadIdentityPools/emulated"
JWT_TYPES: Final = frozenset({"urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token"})
AWS_TYPE: Final = "urn:ietf:params:aws:token-type:aws4_request"
MAX_LIFETIME_SECONDS: Final = 24 * 3600
SKEW_SECONDS: Final = 60
MAX_SIGNATURE_AGE_SECONDS: Final = 15 * 60
ROLE_SECONDS: Final = 3600
ROLE_KEY_MIN_REMAINING_SECONDS: Final = 300
AWS_ACCOUNT: Final = "210987654321"


class SubjectRefused(Exception):
    """A provider does not take a subject token; the text says why and quotes none of it."""


class UnknownProvider(Exception):
    """There is no provider of that audience."""


class Provider(Protocol):
    """A provider of a workload identity pool."""

    audience: str
    """Its full resource name: `//iam.googleapis.com/projects/…/providers/…`."""

    def subject(self, token_type: str, subject_token: str) -> str:
        """Return whom the subject token proves its holder to be; raises SubjectRefused."""


class Federation:
    """The pool and its providers: `cluster`, `azure` and `aws`, and whatever `add_provider` is told of.

    `clock` returns seconds since the epoch; whatever a provider hands out goes into `issued_secrets`.
    """

    def __init__(self, clock: Callable[[], float], issued_secrets: set[str]) -> None:
        provider = f"//iam.googleapis.com/{POOL}/providers"
        self.cluster = OidcProvider(f"{provider}/cluster", "https://cluster.emulated.example", clock, issued_secrets)
        """A cluster that gives each pod an ID token for this provider."""
        self.azure = OidcProvider(
            f"{provider}/azure", "https://sts.windows.net/emulated/", clock, issued_secrets, accepts=("api://emulated",)
        )
        """Azure's managed identities, whose ID tokens are for the application `api://emulated`."""
        self.aws = AwsProvider(f"{provider}/aws", clock, issued_secrets)
        """An account of AWS."""
        self._providers: dict[str, Provider] = {}
        for known in (self.cluster, self.azure, self.aws):
            self.add_provider(known)

    def add_provider(self, provider: Provider) -> None:
        """Add a provider, or replace the one of the same audience."""
        self._providers[provider.audience] = provider

    def remove_provider(self, audience: str) -> None:
        """Remove the provider of that audience, if there is one."""
        self._providers.pop(audience, None)

    def exchange(self, audience: str, token_type: str, subject_token: str) -> str:
        """Return the principal that a subject token stands for, as IAM knows it.

        Raises UnknownProvider and SubjectRefused.
        """
        if audience not in self._providers:
            raise UnknownProvider(audience)
        return self.principal(audience, self._providers[audience].subject(token_type, subject_token))

    @staticmethod
    def principal(audience: str, subject: str) -> str:
        """Return the name that IAM has for a subject of a provider's pool."""
        pool = audience.removeprefix("//iam.googleapis.com/").partition("/providers/")[0]
        return f"principal://iam.googleapis.com/{pool}/subject/{subject}"


class OidcProvider:
    """An issuer of ID tokens. It accepts those for itself, or for one of `accepts` where any are given."""

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
        # By default Google takes a provider's name with and without the scheme.
        self.accepts = accepts or (f"https:{audience}", audience)
        """The `aud` that its tokens may have."""
        self._clock = clock
        self._handed_out = issued_secrets

    @cached_property
    def _key(self) -> Key:
        return Key()

    def token(self, subject: str, *, audience: str | None = None, lifetime_seconds: int = 3600) -> str:
        """Return a new ID token of `subject`; one with a negative lifetime has expired."""
        now = int(self._clock())
        claims: dict[str, object] = {"iss": self.issuer, "sub": subject, "aud": audience or self.accepts[0]}
        token = self._key.sign({**claims, "iat": now + min(0, lifetime_seconds - 1), "exp": now + lifetime_seconds})
        self._handed_out.add(token)
        return token

    def subject(self, token_type: str, subject_token: str) -> str:
        """Return the `sub` of an ID token that this issuer signed for this provider; raises SubjectRefused."""
        if token_type not in JWT_TYPES:
            raise SubjectRefused("The subject_token_type is not the one that the provider takes.")
        try:
            claims = parse(subject_token).verified({self._key.key_id: self._key.public_pem})
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
    """An access key of AWS; the secrets have no repr."""

    access_key_id: str
    """What it is known by: `AKIA…`, or `ASIA…` for a temporary one."""
    secret_access_key: str = field(repr=False)
    """What signs."""
    session_token: str | None = field(repr=False)
    """What goes with a temporary key in every request."""
    arn: str
    """Who it belongs to."""
    expires_at: float | None
    """Seconds since the epoch; None for a key that stays."""


class AwsProvider:
    """An account of AWS with keys of users and of roles."""

    def __init__(self, audience: str, clock: Callable[[], float], issued_secrets: set[str]) -> None:
        self.audience = audience
        self._clock = clock
        self._handed_out = issued_secrets
        self._keys: dict[str, AwsKey] = {}
        self._role_keys: dict[str, AwsKey] = {}

    def user_key(self, name: str) -> AwsKey:
        """Return a new key that stays, as a person puts it into `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`."""
        return self._add("AKIA", f"arn:aws:iam::{AWS_ACCOUNT}:user/{name}", None)

    def role_key(self, role: str, *, lifetime_seconds: float = ROLE_SECONDS) -> AwsKey:
        """Return the temporary key that a machine with this role has; the same until five minutes before its end."""
        known = self._role_keys.get(role)
        if known and known.expires_at and known.expires_at - self._clock() > ROLE_KEY_MIN_REMAINING_SECONDS:
            return known
        expires_at = self._clock() + lifetime_seconds
        key = self._role_keys[role] = self._add("ASIA", self.role_arn(role), expires_at)
        return key

    @staticmethod
    def role_arn(role: str) -> str:
        """Return who the machine is while it has the role."""
        return f"arn:aws:sts::{AWS_ACCOUNT}:assumed-role/{role}/i-0emulated"

    def revoke(self, access_key_id: str) -> None:
        """Make a key unknown."""
        self._keys.pop(access_key_id, None)

    def subject(self, token_type: str, subject_token: str) -> str:
        """Return the ARN of whose key signed the request; raises SubjectRefused."""
        if token_type != AWS_TYPE:
            raise SubjectRefused("The subject_token_type is not the one that the provider takes.")
        try:
            request = sigv4.parse(subject_token)
            key = self._key_of(request)
            request.verify(key.secret_access_key)
        except sigv4.NotSigned as exc:
            raise SubjectRefused(f"The AWS request is not accepted: {exc}.") from None
        # Whose signature is for another provider would otherwise be taken here as well.
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
        self._handed_out |= {secret for secret in (key.secret_access_key, key.session_token) if secret}
        return key

"""The state of the emulated Google: accounts, keys, grants, tokens and faults."""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, Final

from proxy.emulator.federation import POOL_PROJECT_NUMBER, Federation
from proxy.emulator.jwts import EcKey, Key
from proxy.emulator.model import (
    ENDPOINTS,
    SCOPE,
    Access,
    Endpoint,
    Fault,
    Mint,
    PendingFault,
    Permission,
    Pod,
    Role,
    unique_id,
)

__all__ = [
    "GCLOUD_CLIENT",
    "ISSUER",
    "METADATA_ACCOUNT",
    "TOKEN_ENDPOINT",
    "Google",
    "NoSuchAccount",
    "is_service_account",
]

METADATA_ACCOUNT: Final = "metadata@emulated.iam.gserviceaccount.com"
"""The account of the metadata server, unless another one is named."""

ISSUER: Final = "https://accounts.google.com"
"""The `iss` of every ID token."""

TOKEN_ENDPOINT: Final = "https://oauth2.googleapis.com/token"  # noqa: S105 – an address
"""The `aud` of assertions, whatever address they are posted to."""

GCLOUD_CLIENT: Final = "32555940559.apps.googleusercontent.com"
"""The OAuth client of `gcloud auth login`, and the audience of `gcloud auth print-identity-token` for a user."""

WORKFORCE_ENDPOINT: Final = "https://sts.googleapis.com/v1/oauthtoken"
EXPIRED_AGO_SECONDS: Final = 3600
UNIVERSE: Final = "googleapis.com"


class NoSuchAccount(Exception):
    """There is no service account with this e-mail or numeric id."""


class Google:
    """The state of all endpoints. It opens no socket and reads only the given clock.

    `clock` returns seconds since the epoch. `token_lifetime_seconds` is the lifetime of ID tokens and access tokens.
    `slow_seconds` is the delay of `Fault.SLOW`. Grants and revocations take effect after `propagation_seconds` (Google:
    minutes). `signing_key` signs ID tokens; None: a new one.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        token_lifetime_seconds: int = 3600,
        slow_seconds: float = 2.0,
        metadata_account: str = METADATA_ACCOUNT,
        propagation_seconds: float = 0.0,
        signing_key: Key | None = None,
    ) -> None:
        self.ahead_seconds = 0.0
        """How far Google's clock is ahead of the given one."""
        self.clock: Callable[[], float] = lambda: clock() + self.ahead_seconds
        """Returns the time of the emulated Google in seconds since the epoch."""
        self.propagation_seconds = propagation_seconds
        self.token_lifetime_seconds = token_lifetime_seconds
        self.slow_seconds = slow_seconds
        self.metadata_account = metadata_account
        """E-mail of the metadata server's default account, which always exists."""
        self.pod: Pod | None = None
        """The pod of GKE that the metadata server speaks for; None: a machine of Compute Engine or Cloud Run."""
        self.mints: list[Mint] = []
        """All ID tokens that were issued, oldest first."""
        self.calls: Counter[Endpoint] = Counter()
        """The number of requests by endpoint, including refused ones and faults."""
        self.issued_secrets: set[str] = set()
        """All secrets that the emulator issued (tokens, private keys, client secrets), to search logs for them."""
        self.disabled: set[str] = set()
        """E-mails of disabled service accounts and users: they get no tokens, and the ones they have are refused."""
        self.accept_disabled_accounts = False
        """Whether Cloud Run accepts the ID tokens of disabled accounts until they expire."""
        self.disabled_apis: set[str] = set()
        """Host names of APIs that are not enabled in any project."""
        self.project_users: dict[str, set[str]] = {}
        """Who may use a project as quota project: id → principals, besides its own accounts. Others: everybody."""
        self.groups: dict[str, set[str]] = {}
        """Google groups, which may be invokers: e-mail of the group → e-mails of its members."""
        self.federation = Federation(lambda: self.clock(), self.issued_secrets)
        """The workload identity pool and its providers."""
        self.iap_key = EcKey()
        """The key with which IAP signs what it tells a container about the caller."""
        self._signing_key = signing_key
        self._accounts: dict[str, str] = {}
        self._account_keys: dict[str, dict[str, str]] = {}
        self._users: dict[str, Mapping[str, str]] = {}
        self._workforce: dict[str, Mapping[str, str]] = {}
        self._grants: dict[tuple[str, str], list[tuple[float, frozenset[Permission]]]] = {}
        self._access: dict[str, Access] = {}
        self.pending_faults: Mapping[Endpoint, PendingFault[Fault]] = {name: PendingFault() for name in ENDPOINTS}
        """The faults for the next requests, by endpoint."""
        self.add_account(metadata_account)

    # Accounts, users and grants

    def add_account(self, email: str) -> None:
        """Create a service account unless it exists. Raises ValueError if `email` is not an e-mail address."""
        name, _, domain = email.partition("@")
        if not name or not domain or any(character.isspace() or character in "/:" for character in email):
            raise ValueError(f"{email!r} is not an e-mail address")
        self._accounts[email] = unique_id(email)
        self._account_keys.setdefault(email, {})

    def account(self, name: str) -> str:
        """Return the e-mail of the account with this e-mail or numeric id; raises NoSuchAccount."""
        for email, number in self._accounts.items():
            if name in (email, number):
                return email
        raise NoSuchAccount(name)

    def key_file(self, email: str, token_uri: str = TOKEN_ENDPOINT, *, key: Key | None = None) -> dict[str, str]:
        """Return the content of a key file of the account, which is created if missing; `key` None: with a new key.

        Only the public half of the key is stored.
        """
        self.add_account(email)
        key = key or Key()
        self._account_keys[email][key.key_id] = key.public_pem
        # Line by line, because a leaked key may be split. The last line may be too short to be unique.
        self.issued_secrets.update(key.private_pem().splitlines()[1:-2])
        return {
            "type": "service_account",
            "project_id": self.project_of(email),
            "private_key_id": key.key_id,
            "private_key": key.private_pem(),
            "client_email": email,
            "client_id": unique_id(email),
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
            "universe_domain": UNIVERSE,
        }

    def keys_of(self, email: str) -> Mapping[str, str]:
        """Return the account's public keys, key id → PEM; raises NoSuchAccount."""
        if email not in self._account_keys:
            raise NoSuchAccount(email)
        return self._account_keys[email]

    def user_file(self, email: str, client_id: str | None = None) -> dict[str, str]:
        """Return the content of a new `authorized_user` file, as `gcloud auth application-default login` writes it.

        With `client_id=GCLOUD_CLIENT`, it contains what `gcloud auth login` stores.
        """
        user = {
            "type": "authorized_user",
            "client_id": client_id or f"{unique_id('client ' + email)}.apps.googleusercontent.com",
            "client_secret": secrets.token_urlsafe(18),
            "refresh_token": f"1//{secrets.token_urlsafe(48)}",
        }
        self._users[user["refresh_token"]] = {**user, "email": email}
        self.issued_secrets |= {user["client_secret"], user["refresh_token"]}
        return user

    def user(self, refresh_token: str) -> Mapping[str, str] | None:
        """Return the content of the user's file plus `email`; None if the token is unknown."""
        return self._users.get(refresh_token)

    def revoke_user(self, refresh_token: str) -> None:
        """Revoke the refresh token of a user or a workforce member."""
        self._users.pop(refresh_token, None)
        self._workforce.pop(refresh_token, None)

    def workforce_file(self, principal: str, token_url: str = WORKFORCE_ENDPOINT) -> dict[str, str]:
        """Return the content of a new `external_account_authorized_user` file, as gcloud writes it for a workforce."""
        member = {
            "type": "external_account_authorized_user",
            "audience": "//iam.googleapis.com/locations/global/workforcePools/emulated/providers/sso",
            "client_id": f"{unique_id('client ' + principal)}.apps.googleusercontent.com",
            "client_secret": secrets.token_urlsafe(18),
            "refresh_token": f"1//{secrets.token_urlsafe(48)}",
            "token_url": token_url,
            "token_info_url": "https://sts.googleapis.com/v1/introspect",
        }
        self._workforce[member["refresh_token"]] = {**member, "principal": principal}
        self.issued_secrets |= {member["client_secret"], member["refresh_token"]}
        return member

    def workforce_member(self, refresh_token: str) -> Mapping[str, str] | None:
        """Return the content of the member's file plus `principal`; None if the token is unknown."""
        return self._workforce.get(refresh_token)

    def allow_impersonation(self, caller: str, target: str, role: Role = Role.TOKEN_CREATOR) -> None:
        """Grant `caller` (account, user or federated principal) the role on `target`, which is created if missing."""
        self.add_account(target)
        changes = self._grants.get((caller, target), ())
        self._change(caller, target, (changes[-1][1] if changes else frozenset()) | role.permissions)

    def pod_names(self, pod: Pod) -> tuple[str, str]:
        """Return the two names of a pod's Kubernetes account in IAM: as a principal, and as a member of its pool."""
        project = self.project_of(self.metadata_account)
        pool = f"{project}.svc.id.goog"
        location = f"projects/{self.project_number(project)}/locations/global/workloadIdentityPools/{pool}"
        subject = f"ns/{pod.namespace}/sa/{pod.name}"
        return (
            f"principal://iam.googleapis.com/{location}/subject/{subject}",
            f"{pool}[{pod.namespace}/{pod.name}]",
        )

    def forbid_impersonation(self, caller: str, target: str) -> None:
        """Revoke all roles of `caller` on `target`."""
        self._change(caller, target, frozenset())

    def _change(self, caller: str, target: str, permissions: frozenset[Permission]) -> None:
        effective_at = self.clock() + self.propagation_seconds if self.propagation_seconds else -math.inf
        self._grants.setdefault((caller, target), []).append((effective_at, permissions))

    def has_permission(self, caller: str, permission: Permission, target: str) -> bool:
        """Return True if `caller` was granted the permission on `target`; an account has none on itself by default."""
        now = self.clock()
        changes = [granted for effective_at, granted in self._grants.get((caller, target), ()) if effective_at <= now]
        return bool(changes) and permission in changes[-1]

    def grants(self) -> list[tuple[str, str, list[str]]]:
        """Return caller, target and sorted permissions of all grants in effect."""
        now = self.clock()
        found = []
        for (caller, target), changes in self._grants.items():
            permissions = next((granted for since, granted in reversed(changes) if since <= now), frozenset())
            if permissions:
                found.append((caller, target, sorted(permission.value for permission in permissions)))
        return found

    def is_disabled(self, number: str) -> bool:
        """Return True if Cloud Run and IAP refuse the ID tokens of the account or user with this number."""
        return not self.accept_disabled_accounts and number in map(unique_id, self.disabled)

    def project_of(self, email: str) -> str:
        """Return the id of the project of an account, from its e-mail."""
        return email.partition("@")[2].partition(".")[0]

    def project_number(self, project_id: str) -> int:
        """Return the number of a project, 12 digits."""
        return int(unique_id(project_id)[:12])

    def project(self, name: str) -> str | None:
        """Return the id of the project with this id or number; None if there is no such project.

        The projects are those of the accounts, and the project of the workload identity pool.
        """
        if name == POOL_PROJECT_NUMBER:
            return self.project_of(self.metadata_account)
        ids = dict.fromkeys(self.project_of(email) for email in self._accounts)
        return next((project for project in ids if name in (project, str(self.project_number(project)))), None)

    # Tokens

    @cached_property
    def _key(self) -> Key:
        """Google's key. Made when it is first used, because that takes a fraction of a second."""
        return self._signing_key or Key()

    def certificates(self) -> dict[str, str]:
        """Return the keys that verify ID tokens, key id → public key in PEM."""
        return {self._key.key_id: self._key.public_pem}

    def sign(self, claims: Mapping[str, object]) -> str:
        """Return a token with these claims, signed with Google's key. It does not count as a mint."""
        return self._key.sign(claims)

    def id_token(
        self,
        email: str,
        audience: str,
        *,
        claims: Mapping[str, object] | None = None,
        with_email: bool = True,
        expired: bool = False,
    ) -> tuple[str, float]:
        """Return a new ID token for the account `email`, and its `exp`; `claims` replace or extend the usual ones.

        It counts as a mint after `record_mint`.
        """
        issued = int(self.clock()) - (EXPIRED_AGO_SECONDS + self.token_lifetime_seconds if expired else 0)
        expires = issued + self.token_lifetime_seconds
        number = unique_id(email)
        body: dict[str, Any] = {"iss": ISSUER, "aud": audience, "azp": number, "sub": number}
        if with_email:
            body |= {"email": email, "email_verified": True}
        body |= {"iat": issued, "exp": expires} | dict(claims or {})
        token = self.sign(body)
        self.issued_secrets.add(token)
        return token, float(expires)

    def record_mint(self, endpoint: Endpoint, email: str, audience: str, expires_at: float) -> None:
        """Record that an ID token was issued."""
        self.mints.append(Mint(endpoint, audience, email, self.clock(), expires_at))

    def access_token(
        self,
        principal: str,
        scopes: Collection[str] = (SCOPE,),
        *,
        lifetime_seconds: int | None = None,
        expired: bool = False,
    ) -> tuple[str, float]:
        """Return a new access token, and its expiry in seconds since the epoch."""
        lifetime = self.token_lifetime_seconds if lifetime_seconds is None else lifetime_seconds
        expires = self.clock() + (-EXPIRED_AGO_SECONDS if expired else lifetime)
        token = f"ya29.emulated-{secrets.token_urlsafe(32)}"
        self.issued_secrets.add(token)
        self._access[token] = Access(principal=principal, scopes=frozenset(scopes), expires_at=expires)
        return token, expires

    def access(self, token: str) -> Access | None:
        """Return the access of an access token; None if it is unknown, revoked or expired, or of a disabled account."""
        access = self._access.get(token)
        if access is None or access.expires_at <= self.clock():
            self._access.pop(token, None)
            return None
        # It is accepted again when the account is enabled.
        return None if access.principal in self.disabled else access

    def revoke_access_tokens(self) -> None:
        """Revoke all access tokens issued so far."""
        self._access.clear()

    # Faults

    def fail(self, endpoint: Endpoint, fault: Fault | None, *, times: int | None = None) -> None:
        """Apply the fault to the endpoint's next `times` requests (None: to all); fault None removes the active one."""
        self.pending_faults[endpoint].set(fault, times)


def is_service_account(email: str) -> bool:
    """Return True if an e-mail is that of a service account, and not of a user."""
    return email.endswith(".gserviceaccount.com")

"""What the emulated Google knows: accounts, keys, grants, tokens in circulation, and what it is told to do wrong."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from proxy.emulator.federation import POOL_PROJECT_NUMBER, Federation
from proxy.emulator.jwts import Key
from proxy.emulator.model import SCOPE, Access, Endpoint, Fault, Mint, Permission, Role, unique_id

__all__ = ["ISSUER", "TOKEN_ENDPOINT", "Google", "NoSuchAccount"]

ISSUER: Final = "https://accounts.google.com"
"""The `iss` of every ID token."""

TOKEN_ENDPOINT: Final = "https://oauth2.googleapis.com/token"  # noqa: S105 – an address
"""The `aud` of assertions, wherever they are posted to."""

WORKFORCE_ENDPOINT: Final = "https://sts.googleapis.com/v1/oauthtoken"
EXPIRED_AGO_SECONDS: Final = 3600
UNIVERSE: Final = "googleapis.com"


class NoSuchAccount(Exception):
    """There is no service account of that e-mail or numeric id."""


class Google:
    """The state behind all endpoints; it opens no socket and reads no clock but the one given.

    `clock` returns seconds since the epoch. `token_lifetime_seconds` holds for ID tokens and access tokens alike.
    `slow_seconds` is the delay of `Fault.SLOW`. `metadata_min_remaining_seconds` is the remaining life below which the
    metadata server stops handing out the token it has (Google: 300; serverless: 240).
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        token_lifetime_seconds: int = 3600,
        slow_seconds: float = 2.0,
        metadata_min_remaining_seconds: int = 300,
        metadata_account: str = "metadata@emulated.iam.gserviceaccount.com",
    ) -> None:
        self.clock = clock
        self.token_lifetime_seconds = token_lifetime_seconds
        self.slow_seconds = slow_seconds
        self.metadata_min_remaining_seconds = metadata_min_remaining_seconds
        self.metadata_account = metadata_account
        """E-mail of the metadata server's default account; it exists from the start."""
        self.mints: list[Mint] = []
        """Every ID token handed out, oldest first."""
        self.calls: Counter[Endpoint] = Counter()
        """How many requests reached each endpoint, refused and faulty ones included."""
        self.issued_secrets: set[str] = set()
        """Every secret that left the emulator: tokens, private keys, client secrets; to search logs for them."""
        self.federation = Federation(lambda: self.clock(), self.issued_secrets)
        """The workload identity pool, and the clouds whose identities it takes."""
        self._key = Key()
        self._accounts: dict[str, str] = {}
        self._account_keys: dict[str, dict[str, str]] = {}
        self._users: dict[str, Mapping[str, str]] = {}
        self._workforce: dict[str, Mapping[str, str]] = {}
        self._grants: dict[tuple[str, str], set[Permission]] = {}
        self._access: dict[str, Access] = {}
        self._faults: dict[Endpoint, tuple[Fault, int | None]] = {}
        self.add_account(metadata_account)

    # Who there is, and who may do what

    def add_account(self, email: str) -> None:
        """Create a service account; one that exists stays. Raises ValueError for what is no e-mail."""
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

    def key_file(self, email: str, token_uri: str = TOKEN_ENDPOINT) -> dict[str, str]:
        """Return a new key of the account, as its JSON key file; the account is created when missing.

        The public half is remembered, the private half is only in what is returned.
        """
        self.add_account(email)
        key = Key()
        self._account_keys[email][key.key_id] = key.public_pem
        # By the line, since whoever leaks a key may have broken it up; the last one may be too short to be told apart.
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

    def user_file(self, email: str) -> dict[str, str]:
        """Return what `gcloud auth application-default login` writes for a person (`authorized_user`)."""
        user = {
            "type": "authorized_user",
            "client_id": f"{unique_id('client ' + email)}.apps.googleusercontent.com",
            "client_secret": secrets.token_urlsafe(18),
            "refresh_token": f"1//{secrets.token_urlsafe(48)}",
        }
        self._users[user["refresh_token"]] = {**user, "email": email}
        self.issued_secrets |= {user["client_secret"], user["refresh_token"]}
        return user

    def user(self, refresh_token: str) -> Mapping[str, str] | None:
        """Return the fields of that user's file with `email` beside them, or None when the token is not known."""
        return self._users.get(refresh_token)

    def revoke_user(self, refresh_token: str) -> None:
        """Make a user's, or a workforce member's, refresh token unknown."""
        self._users.pop(refresh_token, None)
        self._workforce.pop(refresh_token, None)

    def workforce_file(self, principal: str, token_url: str = WORKFORCE_ENDPOINT) -> dict[str, str]:
        """Return what gcloud writes for a member of a workforce pool (`external_account_authorized_user`)."""
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
        """Return the fields of that member's file with `principal` beside them, or None when it is not known."""
        return self._workforce.get(refresh_token)

    def allow_impersonation(self, caller: str, target: str, role: Role = Role.TOKEN_CREATOR) -> None:
        """Grant `caller` (account, user or federated principal) the role on account `target`, created when missing."""
        self.add_account(target)
        self._grants.setdefault((caller, target), set()).update(role.permissions)

    def forbid_impersonation(self, caller: str, target: str) -> None:
        """Take back whatever `caller` was granted on `target`."""
        self._grants.pop((caller, target), None)

    def has_permission(self, caller: str, permission: Permission, target: str) -> bool:
        """Return whether the caller has the permission on the account; nobody has any on itself by nature."""
        return permission in self._grants.get((caller, target), ())

    def project_of(self, email: str) -> str:
        """Return the id of the project an account belongs to, as its e-mail tells."""
        return email.partition("@")[2].partition(".")[0]

    def project_number(self, project_id: str) -> int:
        """Return the number of a project, 12 digits."""
        return int(unique_id(project_id)[:12])

    def project(self, name: str) -> str | None:
        """Return the id of the project of that id or number; None when there is no such project.

        There are the projects of the accounts, and the one that the workload identity pool belongs to.
        """
        if name == POOL_PROJECT_NUMBER:
            return self.project_of(self.metadata_account)
        ids = dict.fromkeys(self.project_of(email) for email in self._accounts)
        return next((project for project in ids if name in (project, str(self.project_number(project)))), None)

    # Tokens

    def certificates(self) -> dict[str, str]:
        """Return the keys that verify ID tokens: key id → public key, PEM."""
        return {self._key.key_id: self._key.public_pem}

    def sign(self, claims: Mapping[str, object]) -> str:
        """Sign any claims with Google's key: for tests of verifiers, and no mint."""
        return self._key.sign(claims)

    def id_token(
        self,
        endpoint: Endpoint,
        email: str,
        audience: str,
        *,
        claims: Mapping[str, object] | None = None,
        with_email: bool = True,
        expired: bool = False,
    ) -> tuple[str, float]:
        """Return a new ID token that speaks for `email`, and its `exp`; `claims` go in over the usual ones.

        It is not a mint until `record_mint` is told that it was handed out by `endpoint`.
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
        """Note that an ID token was handed out."""
        self.mints.append(Mint(endpoint, audience, email, self.clock(), expires_at))

    def access_token(
        self,
        principal: str,
        scopes: Collection[str] = (SCOPE,),
        *,
        lifetime_seconds: int | None = None,
        expired: bool = False,
    ) -> tuple[str, float]:
        """Return a new access token and when it expires, in seconds since the epoch."""
        lifetime = self.token_lifetime_seconds if lifetime_seconds is None else lifetime_seconds
        expires = self.clock() + (-EXPIRED_AGO_SECONDS if expired else lifetime)
        token = f"ya29.emulated-{secrets.token_urlsafe(32)}"
        self.issued_secrets.add(token)
        self._access[token] = Access(principal=principal, scopes=frozenset(scopes), expires_at=expires)
        return token, expires

    def access(self, token: str) -> Access | None:
        """Return what a live access token stands for; None for one that is unknown, revoked or expired."""
        access = self._access.get(token)
        if access is None or access.expires_at <= self.clock():
            self._access.pop(token, None)
            return None
        return access

    def revoke_access_tokens(self) -> None:
        """Make every access token handed out so far unknown."""
        self._access.clear()

    # Faults

    def fail(self, endpoint: Endpoint, fault: Fault | None, *, times: int | None = None) -> None:
        """Make the endpoint's next `times` requests (None: all) meet the fault; None instead of a fault mends it."""
        if fault is None or times == 0:
            self._faults.pop(endpoint, None)
        else:
            self._faults[endpoint] = (fault, times)

    def faults(self) -> dict[Endpoint, tuple[Fault, int | None]]:
        """Return what is broken on demand, and for how many requests more (None: until it is mended)."""
        return dict(self._faults)

    def next_fault(self, endpoint: Endpoint) -> Fault | None:
        """Return what the request that came in just now must meet, and count it off."""
        if endpoint not in self._faults:
            return None
        fault, times = self._faults[endpoint]
        if times is not None:
            self.fail(endpoint, fault, times=times - 1)
        return fault

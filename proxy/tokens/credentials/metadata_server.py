"""The metadata server of Compute Engine, GKE and Cloud Run as credential source.

It is called directly: google-auth would make three calls for one and needs `requests`. A missing answer is never taken
for good to mean that there is no metadata server: GKE's is not ready in the first seconds of a pod.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import ClassVar, Final
from urllib.parse import urlencode

from proxy.errors import (
    AmbientUnsupported,
    CredentialsInvalid,
    CredentialsNotFound,
    Failure,
    ImpersonationDenied,
    MintRefused,
    TokenMalformed,
    TokenUnavailable,
)
from proxy.quoting import plain, quoted
from proxy.tokens.calls import (
    Bearer,
    NoDescriptor,
    Reply,
    Send,
    bearer,
    date_of,
    error_message,
    failure_of_reply,
    read_object,
)
from proxy.tokens.credentials import gke
from proxy.tokens.credentials.iam_refusals import enable_account
from proxy.tokens.credentials.lookup import looked_for
from proxy.tokens.credentials.source import AccessTokenCache
from proxy.tokens.gate import Gate
from proxy.tokens.model import Token, TokenKey, token_from_jwt

__all__ = ["HOST_VARIABLES", "MetadataServer"]

_ACCOUNT: Final = "instance/service-accounts/default/"

_PROJECT: Final = re.compile(r"[a-z0-9.:-]{1,63}")

_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?)(?::(?P<port>[0-9]{1,5}))?")

_DEFAULT_HOST: Final = "metadata.google.internal"

HOST_VARIABLES: Final = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT")
"""Variables that name another metadata server than the default one; the first that is set counts."""

# What GKE's metadata server says if the Kubernetes account may not use the account in its annotation.
_NOT_A_USER: Final = re.compile(r"iam\.serviceAccounts\.get\w+|IAM policy binding|workloadIdentityUser", re.IGNORECASE)

# GKE's metadata server does not accept many calls at once.
_CALLS_AT_ONCE: Final = 4

_ANY_LIFE_SECONDS: Final = 1e9
"""Longer than any access token lives."""

_UNNAMED: Final = "the attached service account"


class MetadataServer:
    """Mints with the service account that is attached to this instance or pod.

    `send` must connect directly: a proxy from the environment would see the tokens.
    """

    kind: ClassVar[str] = "metadata"
    """Its kind, like the `type` of a credential file."""
    label: ClassVar[str] = "metadata server"
    """Its name in sentences."""

    def __init__(self, send: Send, environment: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._send = send
        self._environment = environment
        self._clock = clock
        self._gate = Gate(_CALLS_AT_ONCE)
        self._cache = AccessTokenCache(self._access_token, clock)
        self._answered = False

    async def identity(self, key: TokenKey) -> Token:
        reply = await self._ask(f"{_ACCOUNT}identity", audience=key.audience, format="full")
        if reply.status == 400:
            # Some metadata servers do not know `format`; Cloud Run accepts the plain token too.
            reply = await self._ask(f"{_ACCOUNT}identity", audience=key.audience)
        if reply.status != 200:
            raise await self._refused(reply, impersonating=False)
        return token_from_jwt(key, _text(reply), date_of(reply))

    async def bearer(self, stale: Bearer | None = None) -> Bearer:
        return await self._cache.get(stale)

    async def principal(self) -> str:
        try:
            return await self.email()
        except Failure:
            return _UNNAMED

    async def email(self) -> str:
        """Return the e-mail of the attached service account; raises a leaf of TokenFailure.

        On GKE, where there is none, it is the principal that a role can be granted to.
        """
        name = await self._email()
        if gke.is_federated(name):
            return await self._federated_principal(name)
        return name if plain(name) is not None and name else _UNNAMED

    async def account(self) -> str:
        """Return the name of its account, "" if it has none: to be compared with the name before.

        Raises a Failure if it does not answer.
        """
        reply = await self._ask(f"{_ACCOUNT}email")
        if reply.status not in (200, 404):
            raise _refusal(reply)
        return _text(reply) if reply.status == 200 else ""

    async def _email(self) -> str:
        reply = await self._ask(f"{_ACCOUNT}email")
        if reply.status != 200:
            raise _refusal(reply)
        return _text(reply)

    async def _federated_principal(self, email: str) -> str:
        project = gke.project_of(email) or await self._about_project("project-id")
        return gke.principal_of(project, await self._about_project("numeric-project-id"))

    async def _about_project(self, what: str) -> str | None:
        try:
            reply = await self._ask(f"project/{what}")
            value = _text(reply) if reply.status == 200 else ""
        except Failure:
            return None
        return value if _PROJECT.fullmatch(value) else None

    async def _access_token(self) -> Bearer:
        reply = await self._ask(f"{_ACCOUNT}token")
        if reply.status != 200:
            raise await self._refused(reply, impersonating=True)
        document = read_object(reply.body)
        lifetime = document.get("expires_in")
        if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or not lifetime < _ANY_LIFE_SECONDS:
            raise TokenMalformed("the metadata server answered 200 without an access token")
        quota_project = self._environment.get("GOOGLE_CLOUD_QUOTA_PROJECT")
        return bearer(document.get("access_token"), self._clock() + lifetime, quota_project)

    async def _ask(self, what: str, **query: str) -> Reply:
        host = self.host
        url = f"http://{host}/computeMetadata/v1/{what}" + (f"?{urlencode(query)}" if query else "")
        try:
            async with self._gate.place():
                reply = await self._send("GET", url, {"metadata-flavor": "Google"})
        except TokenUnavailable as exc:
            if self._answered or isinstance(exc, NoDescriptor):
                raise
            raise self._not_found(str(exc), self._named_by()) from exc
        if reply.status < 500 and reply.status != 429 and reply.headers.get("metadata-flavor") != "Google":
            said = error_message(reply)
            why = f"what answers at {host} is not one{said and f'; it said: {said}'}"
            raise self._not_found(why, self._named_by())
        self._answered = True
        return reply

    @property
    def host(self) -> str:
        """Its address, host or host and port, read from the environment each time, as google-auth does.

        Raises CredentialsNotFound if the environment says that there is none, or CredentialsInvalid.
        """
        environment = self._environment
        if environment.get("NO_GCE_CHECK", "").lower() == "true":
            raise self._not_found("NO_GCE_CHECK says not to look for one")
        name = self._named_by()
        host = environment[name] if name is not None else _DEFAULT_HOST
        match = _HOST.fullmatch(host)
        if match is None or plain(host) is None:
            raise CredentialsInvalid(
                f"{name} must be a host, or a host and a port: no scheme, no path; it holds {quoted(host)}",
                remedy=f"correct or unset {name}",
            )
        if match["port"] is not None and not 0 < int(match["port"]) < 65_536:
            raise CredentialsInvalid(
                f"the port in {name} must be between 1 and 65535; it holds {quoted(host)}",
                remedy=f"correct or unset {name}",
            )
        return host

    def _named_by(self) -> str | None:
        """Return the variable that names the metadata server; None if none does."""
        return next((name for name in HOST_VARIABLES if self._environment.get(name)), None)

    def _not_found(self, why: str, named_by: str | None = None) -> CredentialsNotFound:
        begin = f"no Google credentials: {looked_for(self._environment)}, and"
        if named_by is not None:
            return CredentialsNotFound(
                f"{begin} {named_by} names {self._environment[named_by]}, which is no metadata server that can be "
                f"asked ({why})",
                remedy=f"correct or unset {named_by}, or set GOOGLE_APPLICATION_CREDENTIALS",
            )
        return CredentialsNotFound(
            f"{begin} no metadata server can be asked ({why})",
            remedy="set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login` (enough only "
            "with gcp_impersonate_service_account), or run on Google Cloud",
        )

    async def _refused(self, reply: Reply, *, impersonating: bool) -> Failure:
        """Return why there is no token, and the remedy, which is another one on GKE."""
        said = error_message(reply)
        answer = f" (it said: {said})" if said else ""
        if 400 <= reply.status < 500 and reply.status != 429:
            try:
                email = await self._email()
            except Failure:
                email = ""
            if reply.status == 404 and (gke.is_federated(email) or gke.ANNOTATION in said):
                principal = await self._federated_principal(email)
                return AmbientUnsupported(gke.link_missing(principal, answer, impersonating=impersonating))
            known = email if "@" in email and plain(email) is not None else ""
            if reply.status in (403, 404) and _NOT_A_USER.search(said):
                return ImpersonationDenied(gke.user_missing(known or "the account that it names", answer))
            if "disabled" in said.lower():
                named = f"{_UNNAMED} {known}".rstrip()
                return MintRefused(f"{named} is disabled{answer}: {enable_account(known or 'ACCOUNT')}")
        return _refusal(reply)


def _refusal(reply: Reply) -> Failure:
    if reply.status == 404:
        said = error_message(reply)
        return MintRefused(
            f"the metadata server has no default service account (404{said and f': {said}'}): attach one to this "
            "instance or pod, or set GOOGLE_APPLICATION_CREDENTIALS"
        )
    return failure_of_reply(
        "the metadata server", reply, "check the attached service account (on GKE, Workload Identity's binding)"
    )


def _text(reply: Reply) -> str:
    try:
        return reply.body.decode("ascii").strip()
    except UnicodeDecodeError:  # Not chained: the error holds the answer.
        raise TokenMalformed("the metadata server's answer is no token (it is not ASCII)") from None

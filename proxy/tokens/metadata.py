"""The metadata server of Compute Engine, GKE and Cloud Run as credential source.

Asked directly, not through google-auth, which makes three calls of one and needs `requests`. It is never concluded that
there is no metadata server: GKE's is not ready in the first seconds of a pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlencode

from proxy.errors import (
    CredentialsInvalid,
    CredentialsNotFound,
    Failure,
    MintRefused,
    TokenMalformed,
    TokenUnavailable,
)
from proxy.tokens.adc import looked_for
from proxy.tokens.ambient import BearerCache
from proxy.tokens.calls import Bearer, Reply, Send, bearer, read_object, refusal
from proxy.tokens.model import Token, TokenKey, token_from_jwt

__all__ = ["MetadataServer"]

_ACCOUNT: Final = "/computeMetadata/v1/instance/service-accounts/default/"

# GKE's metadata server does not take many calls at once.
_CALLS_AT_ONCE: Final = 4

_SOMEBODY: Final = "the attached service account"


class MetadataServer:
    """Mints with the service account that is attached to where we run.

    `send` must connect directly: with a proxy from the environment, tokens would go through it.
    """

    def __init__(self, send: Send, environment: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._send = send
        self._environment = environment
        self._clock = clock
        self._gate = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._cache = BearerCache(self._access_token, clock)
        self._answered = False

    async def identity(self, key: TokenKey) -> Token:
        reply = await self._ask("identity", audience=key.audience, format="full")
        if reply.status == 400:
            # Some metadata servers do not know `format`; Cloud Run takes the plain token as well.
            reply = await self._ask("identity", audience=key.audience)
        return token_from_jwt(key, self._body(reply))

    async def bearer(self, stale: Bearer | None = None) -> Bearer:
        return await self._cache.get(stale)

    async def principal(self) -> str:
        try:
            return await self.email()
        except Failure:
            return _SOMEBODY

    @property
    def host(self) -> str:
        """Where it is asked: host, or host and port. Raises CredentialsNotFound where there is to be none, or
        CredentialsInvalid.
        """
        return self._host()

    async def email(self) -> str:
        """Return the e-mail of the attached service account; raises a leaf of TokenFailure."""
        name = self._body(await self._ask("email"))
        return name if name.isprintable() and 0 < len(name) <= 320 else _SOMEBODY

    async def _access_token(self) -> Bearer:
        body = self._body(await self._ask("token"))
        document = read_object(body.encode())
        lifetime = document.get("expires_in")
        if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
            raise TokenMalformed("the metadata server answered 200 without an access token")
        quota_project = self._environment.get("GOOGLE_CLOUD_QUOTA_PROJECT")
        return bearer(document.get("access_token"), self._clock() + lifetime, quota_project)

    async def _ask(self, what: str, **query: str) -> Reply:
        host = self._host()
        url = f"http://{host}{_ACCOUNT}{what}" + (f"?{urlencode(query)}" if query else "")
        try:
            async with self._gate:
                reply = await self._send("GET", url, {"metadata-flavor": "Google"})
        except TokenUnavailable as exc:
            if self._answered:
                raise
            raise self._not_found(str(exc)) from exc
        if reply.status < 500 and reply.status != 429 and reply.headers.get("metadata-flavor") != "Google":
            raise self._not_found(f"what answers at {host} is not one")
        self._answered = True
        return reply

    def _host(self) -> str:
        # Read at use: the environment of google-auth's own variables is.
        environment = self._environment
        if environment.get("NO_GCE_CHECK", "").lower() == "true":
            raise self._not_found("NO_GCE_CHECK says not to look for one")
        host = environment.get("GCE_METADATA_HOST") or environment.get("GCE_METADATA_ROOT")
        if host and not all(mark.isalnum() or mark in ".-_:[]" for mark in host):
            raise CredentialsInvalid("GCE_METADATA_HOST must be a host, or a host and a port: no scheme, no path")
        return host or "metadata.google.internal"

    def _not_found(self, why: str) -> CredentialsNotFound:
        return CredentialsNotFound(
            f"no Google credentials: {looked_for(self._environment)}, and no metadata server can be asked ({why}). "
            "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`, or run on Google Cloud"
        )

    def _body(self, reply: Reply) -> str:
        if reply.status == 404:
            raise MintRefused(
                "the metadata server has no default service account (404): attach one to this instance or pod, or set "
                "GOOGLE_APPLICATION_CREDENTIALS"
            )
        if reply.status != 200:
            raise refusal(
                "the metadata server", reply, "check the attached service account (on GKE, Workload Identity's binding)"
            )
        try:
            return reply.body.decode("ascii").strip()
        except UnicodeDecodeError:  # Not chained: the error holds the answer.
            raise TokenMalformed("the metadata server's answer is no token (it is not ASCII)") from None

"""Tokens by google-auth: assertions, signatures, refresh grants and federation, over the sidecar's own HTTP client.

Everything here blocks and belongs on a thread of its own, and so does the import of this module: it is the first import
of `google.*` (150 ms), and is made for the first mint.

`google_auth_errors` says what google-auth's exceptions mean: their own texts hold whole answers, tokens included.
"""

# google-auth is typed in parts only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any

from google.auth import exceptions, transport

from proxy.errors import Failure, TokenMalformed
from proxy.tokens.calls import Bearer, BlockingSend, Reply, bearer, date_of, failure_of_reply, host_of
from proxy.tokens.credentials.file import CredentialFile
from proxy.tokens.credentials.google_auth_errors import LastCall, failure_of, load_failure
from proxy.tokens.model import Token, TokenKey, read_claims, token_from_jwt

__all__ = ["access_token", "id_token", "load"]


class _Response(transport.Response):
    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    @property
    def status(self) -> int:
        return self._reply.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._reply.headers

    @property
    def data(self) -> bytes:
        return self._reply.body


class _Request(transport.Request):
    """google-auth's HTTP transport. Remembers the last answer, which says what a failure means."""

    def __init__(self, send: BlockingSend) -> None:
        self._send = send
        self.last = LastCall("", None)

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        timeout: float | None = None,
        **options: object,
    ) -> _Response:
        del timeout  # The HTTP client has a deadline of its own.
        if options:
            # Such as the client certificate of X.509 federation: dropping it silently would send something else.
            raise exceptions.TransportError(f"unsupported transport options: {sorted(options)}")
        content = body.encode() if isinstance(body, str) else body
        self.last = LastCall(url, None)
        try:
            reply = self._send(method, url, _texts(headers or {}), content)
        except Failure as failure:
            raise exceptions.TransportError("the call failed") from failure
        self.last = LastCall(url, reply)
        if reply.status >= 500 or reply.status in (408, 429):
            # At once: google-auth would sleep and retry on this thread, while the token source has a back-off.
            raise exceptions.TransportError("the call failed") from failure_of_reply(host_of(url), reply)
        return _Response(reply)


def _texts(headers: Mapping[str, str | bytes]) -> dict[str, str]:
    # google-auth passes on the octets of AWS' session token (IMDSv2) as it received them.
    return {name: value.decode("latin-1") if isinstance(value, bytes) else value for name, value in headers.items()}


def load(file: CredentialFile, loader: Callable[[], Any]) -> Any:
    """Return the google-auth credentials that `loader` returns; CredentialsInvalid if it raises anything."""
    try:
        return loader()
    except Exception as exc:  # noqa: BLE001 - google-auth raises whatever the content makes Python raise
        raise load_failure(file, exc) from None


def access_token(
    file: CredentialFile,
    credentials: Any,
    quota_project: str | None,
    clock: Callable[[], float],
    send: BlockingSend,
) -> Bearer:
    """Return a new access token (scope cloud-platform). Raises a leaf of Failure. Not for two threads at once."""
    _refresh(file, credentials, send, clock)
    expiry = credentials.expiry  # Naive, in UTC.
    expires_at = expiry.replace(tzinfo=UTC).timestamp() if expiry is not None else 0.0
    return bearer(credentials.token, expires_at, quota_project, _email(getattr(credentials, "id_token", None)))


def id_token(
    file: CredentialFile, credentials: Any, key: TokenKey, send: BlockingSend, clock: Callable[[], float]
) -> Token:
    """Return a new ID token with the audience of `key`. Raises a leaf of Failure."""
    reply = _refresh(file, credentials, send, clock).reply
    return token_from_jwt(key, credentials.token, date_of(reply) if reply is not None else None)


def _refresh(file: CredentialFile, credentials: Any, send: BlockingSend, clock: Callable[[], float]) -> LastCall:
    request = _Request(send)
    try:
        credentials.refresh(request)
    except Exception as exc:  # noqa: BLE001 - google-auth raises whatever an answer makes Python raise
        # Not chained: the text could hold a secret.
        raise failure_of(file, request.last, exc, clock()) from None
    return request.last


def _email(jwt: object) -> str | None:
    """Return the e-mail in a user's ID token, if there is one, for a sentence."""
    try:
        email = read_claims(jwt).get("email") if isinstance(jwt, str) else None
    except TokenMalformed:
        return None
    return email if isinstance(email, str) and email.isprintable() else None

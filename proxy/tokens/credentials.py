"""google-auth at work: assertions, signatures, refresh grants and federation, over HTTP that is lent to it.

Everything here blocks and belongs on a worker thread; and so does the import of this module, which is the first import
of `google.*` (150 ms) and waits for the first mint.

What its exceptions mean is told by `explaining`: their own texts hold whole answers, tokens included.
"""

# google-auth is typed in parts only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any

from google.auth import exceptions, transport
from google.oauth2 import service_account

from proxy.errors import Failure, TokenMalformed
from proxy.tokens.adc import CredentialFile
from proxy.tokens.calls import Bearer, BlockingSend, Reply, bearer, date_of, host_of, refusal
from proxy.tokens.explaining import LastCall, explain, unloadable
from proxy.tokens.impersonation import CLOUD_PLATFORM
from proxy.tokens.model import Token, TokenKey, read_claims, token_from_jwt

__all__ = ["AccessTokens", "identity"]


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
    """google-auth's way to HTTP. Remembers the last answer, from which failures are explained."""

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
        del timeout  # The lent HTTP has a deadline of its own.
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
            # At once: google-auth would sleep and repeat on this thread, while the token source has a back-off.
            raise exceptions.TransportError("the call failed") from refusal(host_of(url), reply)
        return _Response(reply)


def _texts(headers: Mapping[str, str | bytes]) -> dict[str, str]:
    # google-auth passes on the octets of AWS' session token (IMDSv2) as it received them.
    return {name: value.decode("latin-1") if isinstance(value, bytes) else value for name, value in headers.items()}


class AccessTokens:
    """Access tokens (scope cloud-platform) from one credential file. Not for two threads at once.

    `subject_token` is given where it comes from this machine (`subject`). Raises CredentialsInvalid for a file that
    google-auth cannot load.
    """

    def __init__(
        self,
        file: CredentialFile,
        quota_project: str | None,
        clock: Callable[[], float],
        subject_token: str | None = None,
    ) -> None:
        self._file = file
        self._quota_project = quota_project
        self._clock = clock
        try:
            self._credentials = _load(file, subject_token)
        except Exception as exc:  # noqa: BLE001 - google-auth raises whatever the content makes Python raise
            raise unloadable(file, exc) from None

    def fetch(self, send: BlockingSend) -> Bearer:
        """Return a new access token. Raises a leaf of Failure."""
        request = _Request(send)
        try:
            self._credentials.refresh(request)
        except Exception as exc:  # noqa: BLE001 - as above; what it holds must not pass
            raise explain(self._file, request.last, exc, self._clock()) from None
        expiry = self._credentials.expiry  # Naive, in UTC.
        expires_at = expiry.replace(tzinfo=UTC).timestamp() if expiry is not None else 0.0
        principal = _email(getattr(self._credentials, "id_token", None))
        return bearer(self._credentials.token, expires_at, self._quota_project, principal)


def identity(file: CredentialFile, key: TokenKey, send: BlockingSend, clock: Callable[[], float]) -> Token:
    """Return a new ID token of the service account whose key `file` is. Raises a leaf of Failure."""
    try:
        credentials = service_account.IDTokenCredentials.from_service_account_info(
            _of_default_universe(file.info), target_audience=key.audience
        )
    except Exception as exc:  # noqa: BLE001 - google-auth raises whatever the content makes Python raise
        raise unloadable(file, exc) from None
    request = _Request(send)
    try:
        credentials.refresh(request)
    except Exception as exc:  # noqa: BLE001 - as above; what it holds must not pass
        raise explain(file, request.last, exc, clock()) from None
    reply = request.last.reply
    return token_from_jwt(key, credentials.token, date_of(reply) if reply is not None else None)


def _email(id_token: object) -> str | None:
    """Return the e-mail in a user's ID token, if there is one, for a sentence."""
    try:
        email = read_claims(id_token).get("email") if isinstance(id_token, str) else None
    except TokenMalformed:
        return None
    return email if isinstance(email, str) and email.isprintable() else None


def _of_default_universe(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's content without `universe_domain`: google-auth takes an empty one for another universe."""
    return {name: value for name, value in info.items() if name != "universe_domain"}


def _load(file: CredentialFile, subject_token: str | None) -> Any:
    scopes = [CLOUD_PLATFORM]
    info = _of_default_universe(file.info)
    match file.kind:
        case "service_account":
            return service_account.Credentials.from_service_account_info(info, scopes=scopes)
        case "authorized_user":
            from google.oauth2 import credentials

            # Without scopes: whatever the person granted. Then there is an ID token beside it, which tells who it is.
            return credentials.Credentials.from_authorized_user_info(info)
        case "external_account_authorized_user":
            from google.auth import external_account_authorized_user

            return external_account_authorized_user.Credentials.from_info(info)
        case _:
            return _load_federated(info, subject_token, scopes)


def _load_federated(info: Mapping[str, Any], subject_token: str | None, scopes: list[str]) -> Any:
    if str(info["subject_token_type"]).startswith("urn:ietf:params:aws"):
        from google.auth import aws

        return aws.Credentials.from_info(info, scopes=scopes)
    from google.auth import identity_pool

    if subject_token is None:
        return identity_pool.Credentials.from_info(info, scopes=scopes)

    class Supplier(identity_pool.SubjectTokenSupplier):
        def get_subject_token(self, context: object, request: object) -> str | None:
            return subject_token

    return identity_pool.Credentials.from_info(
        {**info, "credential_source": None}, subject_token_supplier=Supplier(), scopes=scopes
    )

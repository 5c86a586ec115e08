"""google-auth at work: assertions, signatures, refresh grants and federation, over HTTP that is lent to it.

Everything here blocks and belongs on a worker thread; and so does the import of this module, which is the first import
of `google.*` (150 ms) and waits for the first mint.

google-auth's exceptions hold whole answers, tokens included. So none of their texts is passed on, but for a few that
are known to name only files and settings; what a person is told comes from the status and the JSON error of the last
answer.
"""

# google-auth is typed in parts only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from typing import Any, Final

from google.auth import exceptions, transport
from google.oauth2 import service_account

from proxy.errors import (
    CredentialsInvalid,
    CredentialsRejected,
    Failure,
    ImpersonationDenied,
    TokenMalformed,
)
from proxy.tokens.adc import CredentialFile
from proxy.tokens.calls import Bearer, BlockingSend, Reply, bearer, complaint, host_of, reasons, refusal
from proxy.tokens.impersonation import CLOUD_PLATFORM
from proxy.tokens.model import Token, TokenKey, token_from_jwt

__all__ = ["AccessTokens", "identity"]

_REJECTED: Final = frozenset({"invalid_grant", "invalid_client", "unauthorized_client", "deleted_client"})

# Messages of google-auth that hold a path or the name of a setting, and nothing that was received.
_TELLABLE: Final = re.compile(
    r"File '.*' was not found\.|Executables need to be explicitly allowed.*|Unable to determine AWS region"
    r"|Unable to parse subject_token from JSON file .*|Missing subject_token in .*|Timeout must be between .*"
    r"|Unable to retrieve Identity Pool subject token|Unable to retrieve AWS .*"
)

# The mint's own deadline is 5 s; this is the least that google-auth lets an executable have.
_EXECUTABLE_MILLISECONDS: Final = 5000


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
        self.host = ""
        self.url = ""
        self.last: Reply | None = None

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **options: object,
    ) -> _Response:
        del timeout  # The lent HTTP has a deadline of its own.
        if options:
            # Such as the client certificate of X.509 federation: dropping it silently would send something else.
            raise exceptions.TransportError(f"unsupported transport options: {sorted(options)}")
        content = body.encode() if isinstance(body, str) else body
        self.url, self.host = url, host_of(url)
        try:
            self.last = self._send(method, url, dict(headers or {}), content)
        except Failure as failure:
            raise exceptions.TransportError("the call failed") from failure
        if self.last.status >= 500 or self.last.status in (408, 429):
            # At once: google-auth would sleep and repeat on this thread, while the token source has a back-off.
            raise exceptions.TransportError("the call failed") from refusal(self.host, self.last)
        return _Response(self.last)


class AccessTokens:
    """Access tokens (scope cloud-platform) from one credential file. Not for two threads at once.

    Raises CredentialsInvalid for a file that google-auth cannot load.
    """

    def __init__(self, file: CredentialFile, quota_project: str | None) -> None:
        self._file = file
        self._quota_project = quota_project
        try:
            self._credentials = _load(file)
        except Exception as exc:  # noqa: BLE001 - google-auth raises whatever the content makes Python raise
            raise _unloadable(file, exc) from None

    def fetch(self, send: BlockingSend) -> Bearer:
        """Return a new access token. Raises a leaf of Failure."""
        request = _Request(send)
        try:
            self._credentials.refresh(request)
        except Exception as exc:  # noqa: BLE001 - as above; what it holds must not pass
            raise _explain(self._file, request, exc) from None
        expiry = self._credentials.expiry  # Naive, in UTC.
        expires_at = expiry.replace(tzinfo=UTC).timestamp() if expiry is not None else 0.0
        return bearer(self._credentials.token, expires_at, self._quota_project)


def identity(file: CredentialFile, key: TokenKey, send: BlockingSend) -> Token:
    """Return a new ID token of the service account whose key `file` is. Raises a leaf of Failure."""
    try:
        credentials = service_account.IDTokenCredentials.from_service_account_info(
            file.info, target_audience=key.audience
        )
    except Exception as exc:  # noqa: BLE001 - google-auth raises whatever the content makes Python raise
        raise _unloadable(file, exc) from None
    request = _Request(send)
    try:
        credentials.refresh(request)
    except Exception as exc:  # noqa: BLE001 - as above; what it holds must not pass
        raise _explain(file, request, exc) from None
    return token_from_jwt(key, credentials.token)


def _load(file: CredentialFile) -> Any:
    scopes = [CLOUD_PLATFORM]
    match file.kind:
        case "service_account":
            return service_account.Credentials.from_service_account_info(file.info, scopes=scopes)
        case "authorized_user":
            from google.oauth2 import credentials

            return credentials.Credentials.from_authorized_user_info(file.info, scopes=scopes)
        case "external_account_authorized_user":
            from google.auth import external_account_authorized_user

            return external_account_authorized_user.Credentials.from_info(file.info)
        case _:
            return _load_federated(file.info, scopes)


def _load_federated(info: Mapping[str, Any], scopes: list[str]) -> Any:
    source = info["credential_source"]
    if str(info["subject_token_type"]).startswith("urn:ietf:params:aws"):
        from google.auth import aws

        return aws.Credentials.from_info(info, scopes=scopes)
    if "executable" in source:
        from google.auth import pluggable

        executable = {**source["executable"], "timeout_millis": _EXECUTABLE_MILLISECONDS}
        return pluggable.Credentials.from_info(
            {**info, "credential_source": {**source, "executable": executable}}, scopes=scopes
        )
    from google.auth import identity_pool

    return identity_pool.Credentials.from_info(info, scopes=scopes)


def _unloadable(file: CredentialFile, exc: Exception) -> CredentialsInvalid:
    if file.kind == "service_account":
        return CredentialsInvalid(f"the private_key in {file.path} is not an RSA key in PEM form; get the file anew")
    return CredentialsInvalid(f"{file.path} ({file.kind}) cannot be used{_told(exc)}")


def _told(exc: Exception) -> str:
    text = str(exc)
    return f": {text}" if _TELLABLE.fullmatch(text) else f" ({type(exc).__name__})"


def _explain(file: CredentialFile, request: _Request, exc: Exception) -> Failure:
    """Return what happened, in words of our own."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, Failure):
            return cause
        cause = cause.__cause__
    reply = request.last
    if reply is None:
        return CredentialsInvalid(f"{file.path} ({file.kind}) cannot be used{_told(exc)}")
    if 200 <= reply.status < 300:
        if _TELLABLE.fullmatch(str(exc)):
            return CredentialsInvalid(f"{file.path} ({file.kind}) cannot be used{_told(exc)}")
        return TokenMalformed(f"{request.host} answered {reply.status} without a token")
    said = complaint(reply)
    quoted = f" ({said})" if said else ""
    if reasons(reply) & _REJECTED:
        return CredentialsRejected(_rejection(file, quoted))
    if reply.status == 403 and request.url.endswith(":generateAccessToken"):
        return ImpersonationDenied(
            f"the federated identity of {file.path} may not impersonate the service account that the file names: "
            f"grant it roles/iam.workloadIdentityUser on that account{quoted}"
        )
    return refusal(request.host, reply, f"look at {file.path}")


def _rejection(file: CredentialFile, quoted: str) -> str:
    match file.kind:
        case "service_account":
            return (
                f"Google does not take the key in {file.path}{quoted}: it was deleted or disabled, or the clock of "
                "this machine is wrong; create a new key"
            )
        case "external_account":
            return f"Google does not take what the identity provider in {file.path} vouches for{quoted}"
        case _:
            return (
                f"Google does not take the user credentials in {file.path}{quoted}: run `gcloud auth "
                "application-default login`"
            )

"""IAM Service Account Credentials: tokens of another service account, asked for with a source's access token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from proxy.errors import CredentialsRejected, Failure, ImpersonationDenied, MintRefused, TokenMalformed
from proxy.tokens.ambient import Ambient
from proxy.tokens.calls import Bearer, Reply, Send, bearer, complaint, read_object, reasons, refusal
from proxy.tokens.model import Token, TokenKey, is_account, token_from_jwt

__all__ = ["CLOUD_PLATFORM", "IamCredentials"]

CLOUD_PLATFORM: Final = "https://www.googleapis.com/auth/cloud-platform"

_ACCOUNTS: Final = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"

_ROLES: Final = {
    "generateIdToken": "roles/iam.serviceAccountOpenIdTokenCreator",
    "generateAccessToken": "roles/iam.serviceAccountTokenCreator",
}

# A 403 for one of these reasons is not about who may impersonate whom.
_OTHER_403: Final = {
    "SERVICE_DISABLED": "enable it: gcloud services enable iamcredentials.googleapis.com",
    "USER_PROJECT_DENIED": "the quota project cannot be used by these credentials",
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": (
        "the access scopes of this instance, or those granted at `gcloud auth application-default login`, must include "
        "cloud-platform"
    ),
}


class IamCredentials:
    """Calls `generateIdToken` and `generateAccessToken` for a source that may impersonate."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def identity(self, source: Ambient, key: TokenKey, account: str, delegates: Sequence[str]) -> Token:
        """Return a new ID token of `account` with the audience of `key`.

        Raises ImpersonationDenied, MintRefused, CredentialsRejected, TokenUnavailable, TokenTimeout, TokenMalformed,
        and what `source.bearer` raises.
        """
        wanted = {"audience": key.audience, "includeEmail": True}
        answer = await self._call(source, "generateIdToken", account, delegates, wanted)
        token = answer.get("token")
        if not isinstance(token, str):
            raise TokenMalformed("IAM answered 200 without an ID token")
        return token_from_jwt(key, token)

    async def access_token(
        self, source: Ambient, account: str, delegates: Sequence[str], quota_project: str | None
    ) -> Bearer:
        """Return a new access token of `account` with scope cloud-platform; raises as `identity` does."""
        answer = await self._call(source, "generateAccessToken", account, delegates, {"scope": [CLOUD_PLATFORM]})
        try:
            expires_at = datetime.fromisoformat(answer["expireTime"]).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError):  # Not chained: the error could hold the answer.
            raise TokenMalformed("IAM answered 200 without an access token and its expiry") from None
        return bearer(answer.get("accessToken"), expires_at, quota_project)

    async def _call(
        self, source: Ambient, method: str, account: str, delegates: Sequence[str], wanted: Mapping[str, Any]
    ) -> dict[str, Any]:
        for name in (account, *delegates):
            if not is_account(name):
                raise MintRefused(f"{name!r} is not the e-mail of a service account")
        body = dict(wanted)
        if delegates:
            body["delegates"] = [f"projects/-/serviceAccounts/{name}" for name in delegates]
        url = f"{_ACCOUNTS}{account}:{method}"
        content = json.dumps(body).encode()

        authority = await source.bearer()
        reply = await self._post(url, authority, content)
        if reply.status == 401:
            reply = await self._post(url, await source.bearer(stale=authority), content)
        if reply.status != 200:
            raise await _failure(source, method, account, delegates, reply)
        return read_object(reply.body)

    async def _post(self, url: str, authority: Bearer, content: bytes) -> Reply:
        return await self._send("POST", url, {**authority.headers, "content-type": "application/json"}, content)


async def _failure(source: Ambient, method: str, account: str, delegates: Sequence[str], reply: Reply) -> Failure:
    said = complaint(reply)
    quoted = f" (IAM: {said})" if said else ""
    match reply.status:
        case 401:
            return CredentialsRejected(f"IAM does not take the access token of {await source.principal()}{quoted}")
        case 403:
            other = next((advice for reason, advice in _OTHER_403.items() if reason in reasons(reply)), None)
            if other is not None:
                return MintRefused(f"IAM refused to mint for {account}{quoted}: {other}")
            who = await source.principal()
            way, grant = "", f"grant it {_ROLES[method]} on that service account"
            if delegates:
                way = " by way of its delegates"
                grant = (
                    f"grant {delegates[-1]} {_ROLES[method]} on that service account, and {who}, and each delegate but "
                    f"the last, {_ROLES['generateAccessToken']} on the next"
                )
            return ImpersonationDenied(f"{who} may not impersonate {account}{way}: {grant}; wait some minutes{quoted}")
        case 404:
            return MintRefused(f"the service account {account} does not exist{quoted}")
        case 400:
            return refusal("IAM", reply, f"is the audience right, and {account} enabled?")
        case _:
            return refusal("IAM", reply)

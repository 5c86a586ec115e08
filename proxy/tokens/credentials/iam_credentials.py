"""The IAM Service Account Credentials API: tokens of another service account, for a source that may impersonate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from proxy.errors import Failure, ImpersonationDenied, MintRefused, TokenMalformed
from proxy.quoting import quoted
from proxy.tokens.calls import (
    Bearer,
    Reply,
    Send,
    bearer,
    date_of,
    error_message,
    failure_of_reply,
    in_parentheses,
    read_object,
)
from proxy.tokens.credentials.iam_refusals import access_token_refused, named_account, refusal_without_role
from proxy.tokens.credentials.source import CredentialSource
from proxy.tokens.model import Token, TokenKey, is_account, token_from_jwt

__all__ = ["CLOUD_PLATFORM", "IamCredentials"]

CLOUD_PLATFORM: Final = "https://www.googleapis.com/auth/cloud-platform"
"""The scope of all access tokens."""

_ACCOUNTS: Final = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"

TOKEN_CREATOR: Final = "roles/iam.serviceAccountTokenCreator"  # noqa: S105 - a name

_ROLES: Final = {
    "generateIdToken": "roles/iam.serviceAccountOpenIdTokenCreator",
    "generateAccessToken": TOKEN_CREATOR,
}


class IamCredentials:
    """Calls `generateIdToken` and `generateAccessToken` for a source that may impersonate."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def identity(self, source: CredentialSource, key: TokenKey, account: str, delegates: Sequence[str]) -> Token:
        """Return a new ID token of `account` with the audience of `key`.

        Raises ImpersonationDenied, MintRefused, CredentialsRejected, TokenUnavailable, TokenTimeout, TokenMalformed,
        and what `source.bearer` raises.
        """
        wanted = {"audience": key.audience, "includeEmail": True}
        reply = await self._call(source, "generateIdToken", account, delegates, wanted)
        token = read_object(reply.body).get("token")
        if not isinstance(token, str):
            raise TokenMalformed("IAM answered 200 without an ID token")
        return token_from_jwt(key, token, date_of(reply))

    async def access_token(
        self, source: CredentialSource, account: str, delegates: Sequence[str], quota_project: str | None
    ) -> Bearer:
        """Return a new access token of `account` with scope cloud-platform; raises as `identity` does."""
        reply = await self._call(source, "generateAccessToken", account, delegates, {"scope": [CLOUD_PLATFORM]})
        document = read_object(reply.body)
        try:
            expires_at = datetime.fromisoformat(document["expireTime"]).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError):  # Not chained: the error could hold the answer.
            raise TokenMalformed("IAM answered 200 without an access token and its expiry") from None
        return bearer(document.get("accessToken"), expires_at, quota_project)

    async def _call(
        self, source: CredentialSource, method: str, account: str, delegates: Sequence[str], wanted: Mapping[str, Any]
    ) -> Reply:
        for name in (account, *delegates):
            if not is_account(name):
                raise MintRefused(f"{quoted(name)} is not the e-mail of a service account")
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
        return reply

    async def _post(self, url: str, authority: Bearer, content: bytes) -> Reply:
        return await self._send("POST", url, {**authority.headers, "content-type": "application/json"}, content)


async def _failure(
    source: CredentialSource, method: str, account: str, delegates: Sequence[str], reply: Reply
) -> Failure:
    answer = in_parentheses(reply, "IAM")
    chain = (*delegates, account)
    match reply.status:
        case 401:
            return access_token_refused(await source.principal(), answer)
        case 403:
            caller = await source.principal()
            return refusal_without_role(reply, caller, chain) or _denied(caller, method, chain, reply)
        case 404:
            return MintRefused(_account_missing(chain, reply))
        case 400:
            advice = f"is the audience right, and {' and '.join(chain)} enabled?"
            refusal = refusal_without_role(reply, await source.principal(), chain)
            return refusal or failure_of_reply("IAM", reply, advice)
        case _:
            return failure_of_reply("IAM", reply)


def _account_missing(chain: Sequence[str], reply: Reply) -> str:
    named = named_account(chain, error_message(reply))
    if named is None and len(chain) > 1:
        what = f"one of the service accounts {', '.join(chain)} does not exist"
    else:
        what = f"the service account {named or chain[-1]} does not exist"
    return (
        f"{what}{in_parentheses(reply, 'IAM')}: correct its name where it is set (gcp_impersonate_service_account, "
        "gcp_delegates, or the credential file), or create it with `gcloud iam service-accounts create`"
    )


def _denied(caller: str, method: str, chain: Sequence[str], reply: Reply) -> ImpersonationDenied:
    """Return which role to grant on which account: for the link that IAM's message names, or the whole chain."""
    end = f"wait some minutes{in_parentheses(reply, 'IAM')}"
    *delegates, account = chain
    last = _ROLES[method]
    if delegates and last != TOKEN_CREATOR:
        # Google's reference wants Token Creator for every delegate; the permission that it names is in `last`, too.
        last = f"{last} (Google's reference asks for {TOKEN_CREATOR})"
    links = list(zip((caller, *delegates), chain, strict=True))
    named = named_account(chain, error_message(reply))
    if named in delegates:
        link_caller, target = links[chain.index(named)]
        return ImpersonationDenied(
            f"{link_caller} may not impersonate {target}, a delegate on the way to {account}: grant it "
            f"{TOKEN_CREATOR} on that service account; {end}"
        )
    if not delegates:
        return ImpersonationDenied(
            f"{caller} may not impersonate {account}: grant it {last} on that service account; {end}"
        )
    return ImpersonationDenied(
        f"{caller} may not impersonate {account} by way of its delegates: grant {delegates[-1]} {last} on that service "
        f"account, and {caller}, and each delegate but the last, {TOKEN_CREATOR} on the next; {end}"
    )

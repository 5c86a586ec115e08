"""What google-auth's exceptions mean, in sentences with a remedy. Pure.

Their texts have whole answers in them, tokens included. So only a few are passed on, which are known to name only files
and settings; otherwise the sentence comes from the status and the JSON error of the last answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from proxy.errors import (
    CredentialsInvalid,
    CredentialsRejected,
    Failure,
    ImpersonationDenied,
    MintRefused,
    TokenMalformed,
)
from proxy.quoting import plain
from proxy.tokens.calls import Reply, clock_remark, error_reasons, failure_of_reply, host_of, in_parentheses
from proxy.tokens.credentials.file import CredentialFile
from proxy.tokens.credentials.iam_refusals import access_token_refused, refusal_without_role

__all__ = ["LastCall", "failure_of", "load_failure"]

_REJECTED: Final = frozenset({"invalid_grant", "invalid_client", "unauthorized_client", "deleted_client"})

# Messages of google-auth with a URL or the name of a setting, and nothing that was received.
_TELLABLE: Final = re.compile(
    r"Unable to determine (?:the )?AWS [a-z ]+|No valid AWS 'credential_source' provided"
    r"|Unable to parse subject_token from JSON file .*|Missing subject_token in .*"
)


@dataclass(frozen=True, slots=True)
class LastCall:
    """The last HTTP call that google-auth made before it gave up."""

    url: str
    """The URL; `""` without a call."""
    reply: Reply | None
    """The answer; None without a call, or without an answer."""

    @property
    def host(self) -> str:
        """The host that was asked."""
        return host_of(self.url)


def load_failure(file: CredentialFile, exc: Exception) -> CredentialsInvalid:
    """Return the failure for a file that google-auth cannot load."""
    text = str(exc)
    source = file.subject_token_source
    quoted = source.quoted_values() if source is not None else []
    tellable = _TELLABLE.fullmatch(text) and all(value is None or plain(value) is not None for value in quoted)
    if text.startswith("Unable to determine"):
        text += (
            " without a metadata server: set AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
        )
    return file.load_failure(f": {text}" if tellable else f" ({type(exc).__name__})")


def failure_of(file: CredentialFile, call: LastCall, exc: Exception, now: float) -> Failure:
    """Return what happened when google-auth raised `exc`; `now` is compared with the clock of Google."""
    source = file.subject_token_source
    asked_source = source if source is not None and source.is_asked_at(call.url) else None
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, Failure):
            return asked_source.failed(cause) if asked_source is not None else cause
        cause = cause.__cause__
    reply = call.reply
    if reply is None:
        return load_failure(file, exc)
    if 200 <= reply.status < 300:
        if _TELLABLE.fullmatch(str(exc)):
            return load_failure(file, exc)
        return TokenMalformed(f"{call.host} answered {reply.status} without a token")
    if asked_source is not None:
        return asked_source.refused(call.host, reply)
    answer = in_parentheses(reply)
    if error_reasons(reply) & _REJECTED:
        clock = clock_remark(reply, now)
        rejection = file.rejection(answer, clock)
        is_cause = bool(clock) and clock in rejection
        remedy = "set the clock of this machine" if is_cause else file.rejection_remedy
        return CredentialsRejected(rejection, remedy=remedy)
    if "invalid_target" in error_reasons(reply):
        audience = file.info.get("audience")
        provider = f"{audience} " if isinstance(audience, str) and plain(audience) is not None else ""
        return MintRefused(
            f"the workload identity provider {provider}that {file.path} names does not exist, or it is disabled{answer}"
        )
    refusal = _impersonation_refused(file, reply, answer) if call.url.endswith(":generateAccessToken") else None
    return refusal or failure_of_reply(call.host, reply, f"look at {file.path}")


def _impersonation_refused(file: CredentialFile, reply: Reply, answer: str) -> Failure | None:
    """Return why IAM lets a federated identity not become its service account; None if that is not known."""
    # Not `principal`, which is that account.
    caller = f"the federated identity of {file.path}"
    if reply.status == 401:
        return access_token_refused(caller, answer)
    if reply.status not in (400, 403):
        return None
    account = file.impersonated_account() or "the service account that the file names"
    refusal = refusal_without_role(reply, f"{caller}{file.pool_members()}", (account,))
    if refusal is None and reply.status == 403:
        return ImpersonationDenied(
            f"{caller} may not impersonate the service account that the file names: grant it "
            f"roles/iam.workloadIdentityUser on that account{answer}"
        )
    return refusal

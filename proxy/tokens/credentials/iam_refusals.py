"""Refusals of the IAM Service Account Credentials API that no role on the service account ends. Pure.

==============================  ==========================================================
IAM's reason (google.rpc)       remedy
==============================  ==========================================================
SERVICE_DISABLED                enable the API in the project that IAM names
USER_PROJECT_DENIED             let the caller use the quota project, or name no such project
ACCESS_TOKEN_SCOPE_INSUFFICIENT  let the access token have the scope cloud-platform
none, but "disabled" is said    enable the service account
==============================  ==========================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from proxy.errors import CredentialsRejected, MintRefused
from proxy.tokens.calls import Reply, error_message, error_reasons, in_parentheses, read_object

__all__ = ["access_token_refused", "enable_account", "named_account", "refusal_without_role"]

_EMAIL: Final = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_CONSUMER: Final = re.compile(r"projects/([a-z0-9.:-]{1,63})")
_DISABLED: Final = re.compile(r"\bdisabled\b", re.IGNORECASE)


def refusal_without_role(reply: Reply, caller: str, chain: Sequence[str]) -> MintRefused | None:
    """Return why IAM refused with 400 or 403, unless a role on an account of the chain is missing, or it is unknown.

    `chain` are the delegates and the account that the call was about, `caller` is the identity that called.
    """
    said, reasons = error_message(reply), error_reasons(reply)
    answer = in_parentheses(reply, "IAM")
    what = f"IAM refused to mint for {chain[-1]}{answer}"
    project = _consumer(reply)
    if "SERVICE_DISABLED" in reasons:
        where = f" --project={project}" if project else ""
        return MintRefused(
            f"{what}: enable it, and wait some minutes: gcloud services enable iamcredentials.googleapis.com{where}"
        )
    if "USER_PROJECT_DENIED" in reasons:
        return MintRefused(
            f"{what}: {caller} may not use the quota project{f' {project}' if project else ''}: grant it "
            "roles/serviceusage.serviceUsageConsumer on that project, or take the quota project away "
            "(GOOGLE_CLOUD_QUOTA_PROJECT, or quota_project_id in the credential file)"
        )
    if "ACCESS_TOKEN_SCOPE_INSUFFICIENT" in reasons:
        return MintRefused(
            f"{what}: the access scopes of this instance, or those granted at `gcloud auth application-default "
            "login`, must include cloud-platform"
        )
    if not _DISABLED.search(said):
        return None
    named = named_account(chain, said) or (chain[-1] if len(chain) == 1 else None)
    if named is None:
        return MintRefused(
            f"one of the service accounts {', '.join(chain)} is disabled{answer}: enable it: gcloud iam "
            "service-accounts enable ACCOUNT"
        )
    return MintRefused(f"the service account {named} is disabled{answer}: {enable_account(named)}")


def access_token_refused(caller: str, answer: str) -> CredentialsRejected:
    """Return the failure for a 401: IAM does not take the access token of the identity that called."""
    return CredentialsRejected(
        f"IAM does not accept the access token of {caller}{answer}",
        remedy="see whether that identity is disabled or deleted, or has to sign in again",
    )


def enable_account(email: str) -> str:
    """Return the remedy for a disabled service account."""
    return f"enable it: gcloud iam service-accounts enable {email}"


def named_account(chain: Sequence[str], said: str) -> str | None:
    """Return the account that IAM names in its words, one of the chain if possible; None if it names none."""
    named = [email.rstrip(".") for email in _EMAIL.findall(said)]
    return next((email for email in named if email in chain), named[0] if named else None)


def _consumer(reply: Reply) -> str | None:
    """Return id or number of the project that an error names (google.rpc.ErrorInfo); None if it names none."""
    error = read_object(reply.body).get("error")
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        metadata = detail.get("metadata") if isinstance(detail, dict) else None
        consumer = metadata.get("consumer") if isinstance(metadata, dict) else None
        match = _CONSUMER.fullmatch(consumer) if isinstance(consumer, str) else None
        if match is not None:
            return match[1]
    return None

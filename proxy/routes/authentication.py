"""Rules for the authentication of a route: accounts and audiences. Pure."""

from __future__ import annotations

import re
from typing import Final

from proxy.quoting import holds_credential, quoted

__all__ = ["NEEDS_ACCOUNT", "UNSIGNED", "check_account", "check_audience"]

# Account names, project names and domains of service accounts; the e-mail becomes a part of a URL's path.
_EMAIL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*\.[A-Za-z]{2,}")

# As IAM policies and resource names have it, or as it was copied.
_EMAIL_AMONG_OTHERS: Final = re.compile(
    rf"\s*(?:serviceAccount:|mailto:|(?:[\w./-]*/)?serviceAccounts/)?({_EMAIL.pattern})\s*"
)

_AUDIENCE: Final = re.compile(r"[!-~]{1,2048}")

UNSIGNED: Final = "contradicts gcp_id_token = false; remove one of the two"
"""What is wrong with an account or an audience of a route that is not signed."""

NEEDS_ACCOUNT: Final = "delegates lead to an impersonated account; set gcp_impersonate_service_account as well"
"""What is wrong with delegates alone."""


def check_account(email: str) -> str:
    """Return `email`; ValueError with a sentence unless it can be the e-mail of a service account."""
    if not _EMAIL.fullmatch(email):
        if (copied := _EMAIL_AMONG_OTHERS.fullmatch(email)) is not None:
            raise ValueError(f"write {copied[1]} alone, without what is before or after it")
        raise ValueError(
            f"{quoted(email)} is not the e-mail of a service account; write NAME@PROJECT.iam.gserviceaccount.com"
        )
    return email


def check_audience(audience: str) -> str:
    """Return `audience`; ValueError with a sentence unless it can be the audience of a token."""
    if not _AUDIENCE.fullmatch(audience):
        raise ValueError("must be 1 to 2048 visible ASCII characters; leave it out for the origin of the URL")
    if holds_credential(audience):
        raise ValueError(f"must be the receiver of the token, mostly a URL, and is {quoted(audience)}")
    return audience

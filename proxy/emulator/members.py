"""Members of an IAM policy: who an e-mail, a group, a domain, or everybody with an account is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from proxy.emulator.google import is_service_account
from proxy.emulator.model import unique_id

__all__ = ["includes"]


def includes(members: Collection[str], claims: Mapping[str, Any], groups: Mapping[str, Collection[str]]) -> bool:
    """Return True if the owner of a token with these claims is one of the members.

    Accounts are compared by number (`sub`), not by e-mail. `groups` are e-mail → e-mails of the members. `allUsers` is
    for callers without a token, too, and not looked at here.
    """
    if "allAuthenticatedUsers" in members:
        return True
    email = claims.get("email")
    for member in members:
        kind, colon, rest = member.partition(":")
        name = rest if colon else member
        if kind == "domain":
            if isinstance(email, str) and not is_service_account(email) and email.endswith(f"@{name}"):
                return True
        elif claims["sub"] in map(unique_id, groups.get(name, (name,))):
            return True
    return False

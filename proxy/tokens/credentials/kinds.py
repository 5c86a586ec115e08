"""The table of credential file kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from proxy.errors import CredentialsInvalid
from proxy.quoting import quoted
from proxy.tokens.credentials.authorized_user import AuthorizedUser
from proxy.tokens.credentials.external_account import ExternalAccount
from proxy.tokens.credentials.external_account_authorized_user import WorkforceUser
from proxy.tokens.credentials.file import CredentialFile
from proxy.tokens.credentials.gdch_service_account import DistributedCloudAccount
from proxy.tokens.credentials.impersonated_service_account import ImpersonatedServiceAccount
from proxy.tokens.credentials.service_account import ServiceAccountKey

__all__ = ["KINDS", "credential"]

KINDS: Final[Mapping[str, type[CredentialFile]]] = {
    kind.kind: kind
    for kind in (
        ServiceAccountKey,
        AuthorizedUser,
        ExternalAccount,
        WorkforceUser,
        ImpersonatedServiceAccount,
        DistributedCloudAccount,
    )
}
"""Every kind by its `type`."""


def credential(path: str, digest: bytes, info: Mapping[str, Any]) -> CredentialFile:
    """Return the credential that a JSON object is; CredentialsInvalid unless it is one that can be used.

    `path` is where it stands. The sentence has it, and of the content the type and names of members only.
    """
    declared = info.get("type")
    kind = KINDS.get(declared) if isinstance(declared, str) else None
    if kind is None:
        what = f"has the type {quoted(declared)}" if isinstance(declared, str) else "has no type"
        usable = ", ".join(name for name, known in KINDS.items() if known.supported)
        raise CredentialsInvalid(f"{path} {what}; a Google credential file has one of: {usable}")
    file = kind(path, digest, info)
    file.check()
    return file

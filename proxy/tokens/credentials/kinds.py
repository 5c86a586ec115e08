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
    """Return the credential of a JSON object; raises CredentialsInvalid unless it can be used.

    The error sentence names `path`, its place, and of the content only the type and names of members.
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

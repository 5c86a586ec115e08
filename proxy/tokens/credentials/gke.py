"""Workload Identity Federation for GKE, as its metadata server shows it. Pure.

The metadata server of a GKE node speaks for the pod's Kubernetes account, in one of two ways:

=====================================  ====================  ==============  =========================================
the Kubernetes account                 `email`               `token`         `identity`
=====================================  ====================  ==============  =========================================
is linked to a Google service account  that account          of that         of that account, if the Kubernetes account
by an annotation                                             account, if …   has `workloadIdentityUser` on it; else 403
has no annotation (direct federation)  PROJECT.svc.id.goog   of a federated  404: no service account, no ID token
                                                             principal
=====================================  ====================  ==============  =========================================

The name PROJECT.svc.id.goog is that of the pool of all the project's Kubernetes accounts; no role can be granted to it.
https://cloud.google.com/kubernetes-engine/docs/concepts/workload-identity
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ANNOTATION", "is_federated", "link_missing", "principal_of", "project_of", "user_missing"]

ANNOTATION: Final = "iam.gke.io/gcp-service-account"
"""Links a Kubernetes account to a Google service account."""

_SUFFIX: Final = ".svc.id.goog"
_POOL: Final = re.compile(r"workloadIdentityPools/(?P<pool>[^/]+)/")

_PLACEHOLDERS: Final = "NS and KSA are the namespace and the name of the pod's Kubernetes account"


def is_federated(email: str) -> bool:
    """Return whether the e-mail that the metadata server gives says that a pod has no service account."""
    return email == "default" or project_of(email) is not None


def project_of(email: str) -> str | None:
    """Return the project of the pool that is named instead of an e-mail; None if `email` is no pool."""
    return email.removesuffix(_SUFFIX) if email.endswith(_SUFFIX) and "@" not in email else None


def principal_of(project: str | None, project_number: str | None) -> str:
    """Return the principal that a role can be granted to, with placeholders in capitals for unknown parts."""
    location = f"projects/{project_number or 'NUMBER'}/locations/global"
    pool = f"workloadIdentityPools/{project or 'PROJECT'}{_SUFFIX}"
    return f"principal://iam.googleapis.com/{location}/{pool}/subject/ns/NS/sa/KSA"


def link_missing(principal: str, quoted: str, *, impersonating: bool) -> str:
    """Return what to do if the Kubernetes account `principal` needs a service account and is linked to none.

    `quoted` is what the metadata server said; `impersonating` whether the route impersonates already.
    """
    found = _POOL.search(principal)
    member = f"serviceAccount:{found['pool'] if found else f'PROJECT{_SUFFIX}'}[NS/KSA]"
    annotate = (
        f"`kubectl annotate serviceaccount KSA --namespace NS {ANNOTATION}=ACCOUNT`, and grant "
        f"roles/iam.workloadIdentityUser on ACCOUNT to {member}"
    )
    why = "the pod's Kubernetes account is not linked to a Google service account, and GKE's metadata server mints"
    if impersonating:
        return f"{why} nothing without{quoted}. Add the annotation: {annotate}. {_PLACEHOLDERS}"
    return (
        f"{why} ID tokens only for those{quoted}. If the route impersonates no account, add the annotation: "
        f"{annotate}. Or let the route impersonate an account: set gcp_impersonate_service_account = ACCOUNT, and "
        f"grant roles/iam.serviceAccountOpenIdTokenCreator on ACCOUNT to {principal}. {_PLACEHOLDERS}"
    )


def user_missing(account: str, quoted: str) -> str:
    """Return what to do if the Kubernetes account is annotated with an account that it may not use."""
    return (
        f"the pod's Kubernetes account is annotated ({ANNOTATION}) and may not use {account}{quoted}: grant "
        f"roles/iam.workloadIdentityUser on {account} to serviceAccount:PROJECT{_SUFFIX}[NS/KSA] and wait some "
        f"minutes, or correct the annotation. {_PLACEHOLDERS}; PROJECT is the cluster's"
    )

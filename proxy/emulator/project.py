"""A described project as emulated objects: the accounts and grants of `Google`, and its Cloud Run services."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Final

from proxy.emulator.cloud_run import CloudRun
from proxy.emulator.description import Description, ServiceDescription
from proxy.emulator.front_end import Application
from proxy.emulator.google import Google, is_service_account
from proxy.emulator.services import Services

__all__ = ["build", "service_urls", "set_port"]

REGION_CODES: Final[Mapping[str, str]] = {
    "asia-northeast1": "an", "asia-southeast1": "as", "europe-west1": "ew", "europe-west4": "ez", "us-central1": "uc",
    "us-east1": "ue", "us-east4": "uk", "us-west1": "uw",
}  # fmt: skip
"""Codes in hash URLs, as far as known; other regions get the initials of their name."""

HTTPS: Final = 443


def service_urls(name: str, region: str, project_number: int) -> tuple[str, str]:
    """Return the deterministic URL and the hash URL of a service, both without port."""
    digest = hashlib.sha256(str(project_number).encode()).digest()
    code = REGION_CODES.get(region) or "".join(part[0] for part in region.split("-"))[:3]
    hashed = base64.b32encode(digest).decode().lower()[:10]
    return f"https://{name}-{project_number}.{region}.run.app", f"https://{name}-{hashed}-{code}.a.run.app"


def build(description: Description, apps: Mapping[str, Application]) -> tuple[Google, Services]:
    """Return the emulated project; `apps` are the applications by name of the service."""
    google = Google(
        token_lifetime_seconds=description.token_lifetime_seconds, metadata_account=description.metadata_account
    )
    for account in description.accounts:
        google.add_account(account)
    for caller, target, role in description.grants:
        if is_service_account(caller):
            google.add_account(caller)
        google.allow_impersonation(caller, target, role)
    google.groups.update({name: set(members) for name, members in description.groups.items()})
    google.project_users.update({name: set(users) for name, users in description.quota_projects.items()})
    google.disabled_apis.update(description.disabled_apis)
    google.disabled.update(description.disabled)
    google.accept_disabled_accounts = description.accept_disabled_accounts
    google.pod = description.pod
    # What the file says holds from the beginning; only changes take time.
    google.propagation_seconds = description.propagation_seconds
    return google, Services([_service(service, description, google, apps) for service in description.services])


def set_port(services: Services, port: int) -> None:
    """Add the port at which the services are served to their URLs, unless it is that of HTTPS.

    A client derives the audience from the URL that it calls. The URLs without port stay valid audiences.
    """
    if port == HTTPS:
        return
    for service in services.services:
        plain = (service.url or "", *service.other_urls)
        with_port = tuple(f"{url}:{port}" for url in plain)
        service.url, service.other_urls = with_port[0], (*with_port[1:], *plain)


def _service(
    described: ServiceDescription, description: Description, google: Google, apps: Mapping[str, Application]
) -> CloudRun:
    number = google.project_number(google.project_of(description.metadata_account))
    url, hash_url = service_urls(described.name, described.region, number)
    return CloudRun(
        apps[described.name],
        google,
        name=described.name,
        url=url,
        other_urls=[hash_url],
        tags=described.tags,
        domains=described.domains,
        custom_audiences=described.audiences,
        invokers=[description.metadata_account] if described.invokers is None else described.invokers,
        http2=described.http2,
        iap=described.iap,
        iap_accessors=described.iap_accessors,
        iap_clients=described.iap_clients,
        request_timeout_seconds=described.request_timeout_seconds,
        max_requests=described.max_requests,
        cold_start_seconds=described.cold_start_seconds,
    )

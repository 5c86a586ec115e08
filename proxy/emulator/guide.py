"""What the command prints: where everything is, and how to point a client at it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.emulator.certificates import Certificates
from proxy.emulator.cloud_run import CloudRun
from proxy.emulator.cloud_run_server import CloudRunServer
from proxy.emulator.credential_files import GeneratedCredentials
from proxy.emulator.google_server import API_HOSTS, GoogleServer
from proxy.emulator.iap import account_of
from proxy.emulator.members import includes
from proxy.emulator.model import unique_id

__all__ = ["Running", "as_json", "as_text"]

HTTPS = "443"
IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/identity"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What runs, and which files were written."""

    endpoints: GoogleServer
    """The metadata server and the API hosts."""
    server: CloudRunServer
    """The server of the services."""
    services: Sequence[CloudRun]
    """The services."""
    certificates: Certificates
    """The certificate authority."""
    directory: Path
    """Where the files are."""
    keys: Mapping[str, Path]
    """Key files by account."""
    users: Mapping[str, Path]
    """Credentials of users, by e-mail."""
    credentials: Mapping[str, GeneratedCredentials]
    """Credential files by kind."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead Google's libraries here."""
        address, authority = self.endpoints.metadata_address, str(self.certificates.ca_file)
        return {
            "GCE_METADATA_HOST": address,
            # google-auth's default() detects a metadata server by this variable.
            "GCE_METADATA_IP": address,
            "SSL_CERT_FILE": authority,
            # requests and Node have variables of their own.
            "REQUESTS_CA_BUNDLE": authority,
            "NODE_EXTRA_CA_CERTS": authority,
        }

    @property
    def control(self) -> str:
        """URL below which the control endpoints are."""
        return f"http://{self.endpoints.metadata_address}/emulator"

    @property
    def hosts(self) -> list[str]:
        """Lines for `/etc/hosts`: the names that have to lead here."""
        names = sorted(name for service in self.services for name in service.names if name not in LOOPBACK)
        apis = f"{_host(self.endpoints.tls_address)} {' '.join(API_HOSTS)}"
        own = [name for name in names if not name.replace(".", "").isdigit() and ":" not in name]
        address = _host(self.server.url.removeprefix("https://"))
        return [apis, *([f"{address} {' '.join(own)}"] if own else [])]


def as_json(running: Running) -> dict[str, Any]:
    """Return all places for programs; `cloud_run` is an address, `audience` the URL of the first service."""
    return {
        "cloud_run": running.server.url,
        "audience": running.services[0].url,
        "services": {
            service.name: {
                "url": service.url,
                "other_urls": list(service.other_urls),
                "hosts": sorted(service.names),
                "audiences": list(service.custom_audiences),
                "invokers": sorted(service.invokers),
                "iap_accessors": sorted(service.iap_accessors) if service.iap else None,
            }
            for service in running.services
        },
        "iap_account": account_of(running.endpoints.google),
        "hosts": running.hosts,
        "metadata": running.endpoints.metadata_address,
        "tls": running.endpoints.tls_address,
        "control": running.control,
        "directory": str(running.directory),
        "ca_file": str(running.certificates.ca_file),
        "key_files": {account: str(file) for account, file in running.keys.items()},
        "user_files": {email: str(file) for email, file in running.users.items()},
        "environment": running.environment,
        "credentials": {
            kind: {"file": str(file.file), "principal": file.principal, "environment": dict(file.environment)}
            for kind, file in running.credentials.items()
        },
    }


def as_text(running: Running) -> str:
    """Return the same for people."""
    google = running.endpoints.google
    account = google.metadata_account if google.pod is None else f"the pod {google.pod.namespace}/{google.pod.name}"
    lines = ["The emulated Google is ready; Ctrl-C ends it.", ""]
    for service in running.services:
        lines += _service_lines(service, account_of(google))
    lines += [
        f"  served at        {running.server.url}",
        f"  metadata server  http://{running.endpoints.metadata_address}  as {account}",
        f"  API hosts        https://{running.endpoints.tls_address}  for {', '.join(API_HOSTS)}",
        f"  control          GET {running.control}/state; POST {running.control}/faults, …/services, …/grants, …",
        f"  key files        {running.directory / 'keys'}",
        "",
        "In the shell of the program that is to meet it:",
        "",
        *(f"  export {name}={shlex.quote(value)}" for name, value in running.environment.items()),
        *_example_lines(running),
        "",
        "Or with a key instead of the metadata server:",
        "",
        f"  export GOOGLE_APPLICATION_CREDENTIALS={shlex.quote(str(running.keys[google.metadata_account]))}",
        *_user_lines(running.users),
        *_credential_lines(running.credentials),
        "",
        "Names have to lead here (/etc/hosts, network aliases, curl --connect-to):",
        "",
        *(f"  {line}" for line in running.hosts),
        *_port_lines(running),
    ]
    return "\n".join(lines)


def _example_lines(running: Running) -> list[str]:
    """Return a request with curl to a service that the metadata server's account may call."""
    google = running.endpoints.google
    caller = {"sub": unique_id(google.metadata_account)}
    mine = [one for one in running.services if includes(one.invokers, caller, google.groups) and not one.iap]
    if not mine or google.pod is not None:
        return []
    url, address = mine[0].url, running.server.url.removeprefix("https://")
    identity = f"http://{running.endpoints.metadata_address}{IDENTITY}?audience={url}"
    return [
        "",
        "A first request:",
        "",
        f"  TOKEN=$(curl -s -H 'Metadata-Flavor: Google' '{identity}')",
        f"  curl -s --cacert {shlex.quote(str(running.certificates.ca_file))} --connect-to ::{address} "
        f'-H "Authorization: Bearer $TOKEN" {url}/hello',
    ]


def _service_lines(service: CloudRun, iap: str) -> list[str]:
    lines = [
        f"  Cloud Run        {service.name}: {service.url}",
        f"                   audiences {', '.join((str(service.url), *service.other_urls, *service.custom_audiences))}",
        f"                   invokers {', '.join(sorted(service.invokers)) or 'nobody'}",
    ]
    more = [*(f"tag {tag}" for tag in service.tags), *(f"domain {domain}" for domain in service.domains)]
    more += ["without --use-http2"] * (not service.http2)
    lines += [f"                   {', '.join(more)}"] if more else []
    if service.iap:
        accessors = ", ".join(sorted(service.iap_accessors)) or "nobody"
        lines.append(
            f"                   behind IAP, which lets pass {accessors} and has to be an invoker itself: {iap}"
        )
    return lines


def _user_lines(users: Mapping[str, Path]) -> list[str]:
    lines = ["", "Or as a user who has signed in with gcloud:", ""] if users else []
    return lines + [f"  GOOGLE_APPLICATION_CREDENTIALS={shlex.quote(str(file))}" for file in users.values()]


def _credential_lines(written: Mapping[str, GeneratedCredentials]) -> list[str]:
    if not written:
        return []
    lines = ["", f"Or with another kind of credential, from {next(iter(written.values())).file.parent}:", ""]
    for file in written.values():
        needs = "".join(f"{name}={shlex.quote(value)} " for name, value in file.environment.items())
        lines += [f"  {needs}GOOGLE_APPLICATION_CREDENTIALS={shlex.quote(str(file.file))}", f"    is {file.principal}"]
    return lines


def _port_lines(running: Running) -> Iterable[str]:
    port = running.endpoints.tls_address.rpartition(":")[2]
    if port == HTTPS:
        return ()
    return (
        "",
        f"Users' credentials and impersonation call Google's names on port {HTTPS}, whatever a file says; here the API",
        f"hosts are on port {port} (so add --tls-port {HTTPS}). Metadata server, keys and federation work without.",
    )


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")

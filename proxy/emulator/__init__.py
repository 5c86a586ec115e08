"""A strict local Google, for the development stack and the tests.

::

    Google          accounts, keys, grants, tokens, faults; no socket
    Federation      the identity providers of a workload identity pool: a cluster, Azure, AWS
    GoogleServer    metadata servers (HTTP) · IAM Credentials, OAuth, token exchange, Resource Manager (TLS)
    CredentialFiles one credential file of each kind
    CloudRun        ASGI middleware that verifies ID tokens as Cloud Run's front end does
    CloudRunServer  Hypercorn with TLS and ALPN h2, to put that middleware on
    Control         faults and counts over HTTP
    Certificates    a throw-away authority for both

It shares no code with the sidecar: what both got wrong the same way, no test would see. It is as strict as Google, and
where that is not known, stricter. Programs under test run unmodified: `GCE_METADATA_HOST` and `SSL_CERT_FILE` point
them here, and DNS (or a key file's `token_uri`) the API hosts.
"""

from proxy.emulator.certificates import Certificates, write_secret
from proxy.emulator.cloud_run import CloudRun, RequestRecord, Verdict, read_claims
from proxy.emulator.cloud_run_server import CloudRunServer
from proxy.emulator.control import Control
from proxy.emulator.credential_files import CredentialFiles, GeneratedCredentials
from proxy.emulator.echo import echo
from proxy.emulator.federation import AwsProvider, Federation, OidcProvider
from proxy.emulator.google import Google
from proxy.emulator.google_server import API_HOSTS, GoogleServer
from proxy.emulator.model import Access, Fault, Mint, Permission, Role
from proxy.emulator.sockets import CannotListen

__all__ = [
    "API_HOSTS",
    "Access",
    "AwsProvider",
    "CannotListen",
    "Certificates",
    "CloudRun",
    "CloudRunServer",
    "Control",
    "CredentialFiles",
    "Fault",
    "Federation",
    "GeneratedCredentials",
    "Google",
    "GoogleServer",
    "Mint",
    "OidcProvider",
    "Permission",
    "RequestRecord",
    "Role",
    "Verdict",
    "echo",
    "read_claims",
    "write_secret",
]

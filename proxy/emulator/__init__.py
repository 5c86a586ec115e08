"""A strict local Google, for the development stack and the tests.

::

    Google          the state: accounts, keys, grants, tokens, faults; opens no socket
    Federation      the identity providers of a workload identity pool: a cluster, Azure, AWS
    GoogleServer    metadata servers (HTTP) · IAM Credentials, OAuth, token exchange, Resource Manager, keys (TLS)
    CredentialFiles one credential file of each kind
    CloudRun        ASGI middleware that verifies ID tokens as Cloud Run's front end does
    Services        several of them, found by the host of a request
    CloudRunServer  Hypercorn with TLS and ALPN h2, to serve them with the limits of Google's front end
    Control         faults, changes and counts over HTTP
    description     a file with services, accounts and grants; `project` makes the objects of it
    guide           what the command prints: how to point a client at all this
    Certificates    a temporary certificate authority for both servers

The emulator shares no code with the sidecar, because tests cannot find an error that both have. It is as strict as
Google, and stricter where Google's behaviour is unknown. Programs under test run unmodified: `GCE_METADATA_HOST`,
`SSL_CERT_FILE` and DNS (or a key file's `token_uri`) lead them to the emulator.
"""

from proxy.emulator import description, guide, project
from proxy.emulator.certificates import Certificates, write_secret
from proxy.emulator.cloud_run import CloudRun, read_claims
from proxy.emulator.cloud_run_server import CloudRunServer
from proxy.emulator.control import Control
from proxy.emulator.credential_files import CredentialFiles, GeneratedCredentials
from proxy.emulator.echo import echo
from proxy.emulator.federation import AwsProvider, Federation, OidcProvider
from proxy.emulator.google import GCLOUD_CLIENT, Google
from proxy.emulator.google_server import API_HOSTS, GoogleServer
from proxy.emulator.limits import Limits
from proxy.emulator.model import Access, Fault, Mint, Permission, Pod, Role
from proxy.emulator.service_faults import ServiceFault
from proxy.emulator.services import Services
from proxy.emulator.sockets import CannotListen, bind
from proxy.emulator.verdicts import RequestRecord, Verdict

__all__ = [
    "API_HOSTS",
    "GCLOUD_CLIENT",
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
    "Limits",
    "Mint",
    "OidcProvider",
    "Permission",
    "Pod",
    "RequestRecord",
    "Role",
    "ServiceFault",
    "Services",
    "Verdict",
    "bind",
    "description",
    "echo",
    "guide",
    "project",
    "read_claims",
    "write_secret",
]

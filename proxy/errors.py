"""Why an exchange failed, before its response began. Pure.

A failure has a source and a kind. The base class is the source: `RequestRefused` (the caller), `SidecarFailure` (this
process), `TokenFailure` (the credentials, Google), `UpstreamFailure` (Cloud Run, the way to it). The class itself is
the kind. `str(failure)` is one sentence for a person: what is wrong, and if that is known, what to do. Where what to do
has been given apart, `problem` is the sentence without it.

A transient failure is expected to end without any repair. Any other stays until a person does what the remedy in the
docstring of its class says. What the caller is answered is decided elsewhere (`restate`).

The text of a failure never contains a token, a key or an `Authorization` value.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

__all__ = [
    "ERROR_FIELD", "AmbientUnsupported", "BadRequest", "BrowserRefused", "CallerUnverified", "CredentialsInvalid",
    "CredentialsNotFound", "CredentialsRejected", "DeploymentRefused", "Draining", "Failure", "HeadTooLarge",
    "ImpersonationDenied", "Internal", "LoopDetected", "MethodRefused", "MintRefused", "Overloaded", "PathRefused",
    "ProxyInvalid", "RequestRefused", "RouteNotFound", "SidecarFailure", "TokenExpired", "TokenFailure",
    "TokenFromCaller", "TokenMalformed", "TokenTimeout", "TokenUnavailable", "UpstreamConnectFailed",
    "UpstreamConnectTimeout", "UpstreamConnectionLost", "UpstreamFailure", "UpstreamNotHttp2", "UpstreamRefusedStream",
    "UpstreamReset", "UpstreamSaturated", "UpstreamTlsFailed", "all_failures",
]  # fmt: skip

ERROR_FIELD: Final = b"x-cloudrun-sidecar-error"
"""Response field that carries `Failure.code`; its presence says that the sidecar answered, not Cloud Run."""


class Failure(Exception):
    """Base of all failures; `str()` is the sentence for a person."""

    code: ClassVar[str]
    """Failure code: a stable name for `ERROR_FIELD`, log lines and metrics."""
    transient: ClassVar[bool] = False
    """True if it is expected to end without any repair."""

    def __init__(self, problem: str = "", *, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        """What is wrong."""
        self.remedy = remedy
        """What to do about this one; `""` leaves it to the remedy of its kind."""

    @property
    def severity(self) -> Literal["warning", "error"]:
        """Level of the log line: `error` if something on this side must be repaired, else `warning`."""
        return "warning" if self.transient or isinstance(self, RequestRefused) else "error"


class RequestRefused(Failure):
    """The request is at fault: the same request fails again."""


class SidecarFailure(Failure):
    """The sidecar itself could not serve the request."""


class TokenFailure(Failure):
    """There is no ID token, so nothing was sent upstream."""


class UpstreamFailure(Failure):
    """The upstream could not be reached, or failed before its response began."""


# ---- request


class BadRequest(RequestRefused):
    """An HTTP/1.1 request is malformed, ambiguous or too long.

    Remedy: correct the client; the sentence says which rule of HTTP/1.1 the request breaks.
    """

    code = "bad-request"


class BrowserRefused(RequestRefused):
    """A web page sent the request (cross-site request forgery); it would be signed with the sidecar's identity.

    Remedy: none for a page. A person calls 127.0.0.1 or localhost, or lists the host name in `allowed_hosts`.
    """

    code = "browser-refused"


class CallerUnverified(RequestRefused):
    """The request is not signed by a Restate server whose key is in `restate_identity_keys`.

    Remedy: if your Restate sent it, let it sign, and list the public key that it logs at its start.
    """

    code = "caller-unverified"


class DeploymentRefused(RequestRefused):
    """A deployment chooses a host, an account or an audience that `[deployments]` does not allow, or chooses wrongly.

    Remedy: correct the URL or the headers of the deployment, or add what the sentence names to the list.
    """

    code = "deployment-refused"


class HeadTooLarge(RequestRefused):
    """The head of the request is larger than `max_field_section`, or than the upstream's SETTINGS_MAX_HEADER_LIST_SIZE.

    Remedy: have the client, or the deployment's additional headers, send fewer or shorter fields.
    """

    code = "head-too-large"


class LoopDetected(RequestRefused):
    """The request came from this sidecar itself, or has passed through too many other sidecars.

    Remedy: set the `url` of the route to the Cloud Run service.
    """

    code = "loop-detected"


class MethodRefused(RequestRefused):
    """CONNECT and TRACE are not forwarded.

    Remedy: find the client that sends them, and have it call the path of a route.
    """

    code = "method-refused"


class PathRefused(RequestRefused):
    """The path could mean another route, or leave the base path of its route, once a service normalises it.

    Remedy: use a URL without `..`, encoded slashes, backslashes and empty segments.
    """

    code = "path-refused"


class RouteNotFound(RequestRefused):
    """No route has a prefix of this path.

    Remedy: correct the URL that the client uses, or add a route; the sentence names similar routes.
    """

    code = "route-not-found"


class TokenFromCaller(RequestRefused):
    """An interactive request has a Google token of its own; the answer would not show whether the sidecar's works.

    Remedy: configure the client to add no Google token; the sidecar adds one.
    """

    code = "token-from-caller"


# ---- sidecar


class Draining(SidecarFailure):
    """The sidecar is shutting down: it starts no exchange, and ends an unanswered one when its drain timeout is over.

    Remedy: none; the next sidecar takes the request.
    """

    code = "draining"
    transient = True


class Internal(SidecarFailure):
    """A defect of the sidecar.

    Remedy: report it, with the log line that says where it happened.
    """

    code = "internal"


class Overloaded(SidecarFailure):
    """A limit of the sidecar is reached.

    Remedy: raise `queued_octets` or `max_concurrent_streams`, or run more workers or replicas.
    """

    code = "overloaded"
    transient = True


# ---- token


class AmbientUnsupported(TokenFailure):
    """This kind of credential cannot mint an ID token for an audience.

    Remedy: set `gcp_impersonate_service_account`.
    """

    code = "ambient-unsupported"


class CredentialsInvalid(TokenFailure):
    """The credential file is missing, unreadable or wrong.

    Remedy: repair the file that the sentence names; it is read again at the next request.
    """

    code = "credentials-invalid"


class CredentialsNotFound(TokenFailure):
    """There is no credential file and no metadata server; transient because GKE's server may still be starting.

    Remedy: set `GOOGLE_APPLICATION_CREDENTIALS`, or run `gcloud auth application-default login`.
    """

    code = "credentials-not-found"
    transient = True


class CredentialsRejected(TokenFailure):
    """Google rejects the credential (`invalid_grant`): it is revoked, deleted or expired.

    Remedy: run `gcloud auth application-default login`, or make a new key; with federation, see what its pool accepts.
    """

    code = "credentials-rejected"


class ImpersonationDenied(TokenFailure):
    """IAM denies impersonation.

    Remedy: grant `roles/iam.serviceAccountOpenIdTokenCreator` on the account that the sentence names.
    """

    code = "impersonation-denied"


class MintRefused(TokenFailure):
    """Google refused to mint (4xx) for a reason that has no failure of its own.

    Remedy: follow Google's words, which the sentence quotes; check that the account exists and the API is enabled.
    """

    code = "mint-refused"


class ProxyInvalid(TokenFailure):
    """The environment names a proxy that cannot be used: a SOCKS proxy, or no URL of a proxy.

    Remedy: set `https_proxy` to http://HOST:PORT, or list the host in `no_proxy`.
    """

    code = "proxy-invalid"


class TokenExpired(TokenFailure):
    """The minted token was expired on arrival.

    Remedy: correct the clock of the server that answers for Google or the metadata server.
    """

    code = "token-expired"
    transient = True


class TokenMalformed(TokenFailure):
    """The answer to a mint is not a JWT with an expiry.

    Remedy: find out which server answers in place of Google or the metadata server.
    """

    code = "token-malformed"
    transient = True


class TokenTimeout(TokenFailure):
    """Minting took longer than its deadline.

    Remedy: check the network to Google (proxy, firewall), slow executables, and mounts that hang.
    """

    code = "token-timeout"
    transient = True


class TokenUnavailable(TokenFailure):
    """Google or the metadata server could not be reached, answered 5xx or 429, or closed the connection.

    Remedy: if it does not end by itself, see that this machine reaches the server that the sentence names, and trusts
    its certificate (DNS, egress rules, `https_proxy`, `SSL_CERT_FILE`).
    """

    code = "token-unavailable"
    transient = True


# ---- upstream


class UpstreamConnectFailed(UpstreamFailure):
    """Name resolution, the TCP connection, or the tunnel through `upstream_proxy` failed.

    Remedy: check the `url` of the route, DNS and egress rules; `upstream_proxy`, if the sentence names it.
    """

    code = "upstream-connect-failed"
    transient = True


class UpstreamConnectTimeout(UpstreamFailure):
    """Resolution, TCP and TLS together took longer than `connect_timeout`.

    Remedy: check the name servers or `upstream_proxy` if the sentence names them, else egress rules that drop packets.
    """

    code = "upstream-connect-timeout"
    transient = True


class UpstreamConnectionLost(UpstreamFailure):
    """The connection ended after the request was sent and before a response began.

    Remedy: if it is not rare, look for crashes in the log of the service.
    """

    code = "upstream-connection-lost"
    transient = True


class UpstreamNotHttp2(UpstreamFailure):
    """The upstream does not offer HTTP/2 (ALPN h2).

    Remedy: deploy the service with `--use-http2`, and set the `url` of the route to Cloud Run's.
    """

    code = "upstream-not-http2"


class UpstreamRefusedStream(UpstreamFailure):
    """The upstream refused the request unprocessed: three times, for `stream_wait_timeout`, or when it was not held.

    Remedy: if it is not rare, see in the log of the service why it refuses requests; with a larger `replay_octets`,
    larger ones are held and sent again.
    """

    code = "upstream-refused-stream"
    transient = True


class UpstreamReset(UpstreamFailure):
    """The upstream reset the stream, or its response broke a rule of HTTP/2.

    Remedy: read the log of the service.
    """

    code = "upstream-reset"
    transient = True


class UpstreamSaturated(UpstreamFailure):
    """All streams of all permitted connections were in use for longer than `stream_wait_timeout`.

    Remedy: raise `max_upstream_connections`, or make the service faster.
    """

    code = "upstream-saturated"
    transient = True


class UpstreamTlsFailed(UpstreamFailure):
    """The certificate of the upstream does not verify, or TLS failed otherwise.

    Remedy: check the host name of the `url`; set `upstream_ca` for a private authority.
    """

    code = "upstream-tls-failed"


def all_failures() -> list[type[Failure]]:
    """Return every kind of failure, sorted by code. A kind is a direct subclass of its source, and may have others."""
    kinds = (kind for source in Failure.__subclasses__() for kind in source.__subclasses__())
    return sorted(kinds, key=lambda kind: kind.code)

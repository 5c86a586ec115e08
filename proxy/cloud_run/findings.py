"""The cause of an error response, and the remedy. Pure.

The response may come from Cloud Run's front end (401 with a challenge, 403 and 404 as a web page, `upstream connect
error`), from the container (`x-restate-server` if it runs a Restate SDK), or from a server that is not Cloud Run.

======================  ========================================================================================
finding                 cause
======================  ========================================================================================
`clock-wrong`           401, and this machine's clock and the service's differ by more than a minute
`audience-refused`      401 from the front end: the token is for another audience
`identity-required`     401 or 403 from the container: it verifies requests itself
`invoker-missing`       403: the principal lacks `roles/run.invoker`, or the ingress setting blocks the request
`unsigned-refused`      401 or 403 on a route that adds no token
`not-found`             404: the URL is wrong, or the ingress setting blocks the request
`http2-not-end-to-end`  Cloud Run speaks HTTP/1.1 to the container: `--use-http2` is missing
`no-instance`           429, 503: no instance took the request
`timed-out`             504: the container did not answer in time
`service-failed`        another 5xx
`iap`                   Identity-Aware Proxy refused the request before Cloud Run checked the token
`redirected`            another 3xx
`versions-refused`      415: the SDK and Restate have no manifest version in common
`sidecar-answered`      the URL leads to a cloudrun-sidecar
`unexpected-status`     any other status
======================  ========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.clock_skew import MAX_SKEW_SECONDS, skew_in_words
from proxy.cloud_run import gcloud
from proxy.cloud_run.response import Response
from proxy.errors import ERROR_FIELD
from proxy.quoting import one_line
from proxy.routes import Route

__all__ = ["CLOCK_REMEDY", "Finding", "RequestInfo", "diagnose"]

TAG_SEPARATOR: Final = "---"
"""Between a traffic tag and the name of its service, in the host name of the tag."""

CLOCK_REMEDY: Final = "Tokens and signatures are valid for a limited time: set the clock (NTP), then check again."
"""What to do about a wrong clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """The request that got the response."""

    route: Route
    """The route that the request matched."""
    path: str | None = None
    """The path of the request to the upstream, without query; None for a discovery."""
    principal: str | None = None
    """The principal of the token; None if the token does not name it."""
    skew_seconds: float | None = None
    """How far this machine's clock is ahead of the service's; None if unknown."""

    @property
    def service(self) -> gcloud.Service:
        """The Cloud Run service, as far as the URL names it."""
        return gcloud.service_of(self.route.origin.host)


@dataclass(frozen=True, slots=True)
class Finding:
    """The cause of an error response, and its remedy."""

    code: str
    """Stable name of the cause, from the table in this module."""
    text: str
    """The cause, as one line."""
    remedy: str
    """What to do, one or two sentences."""
    commands: tuple[str, ...] = ()
    """Shell commands of the remedy; a word in capitals is a placeholder."""


def diagnose(response: Response, request: RequestInfo) -> Finding:
    """Return the cause of a response whose status is not 200."""
    status = response.status
    sidecar = response.fields.get(ERROR_FIELD.decode())
    if sidecar is not None:
        return Finding(
            "sidecar-answered",
            f"a cloudrun-sidecar answered ({status}, {one_line(sidecar)})",
            "Set the url of the route to the Cloud Run service, not to a sidecar. If the url is meant to lead to a "
            "sidecar, see its log.",
        )
    if response.from_iap:
        return _behind_iap(response, request)
    if "upstream connect error" in response.excerpt() and "protocol error" in response.excerpt():
        return _no_http2(status, request)
    if status in (401, 403):
        return _refused(response, request)
    if status == 404:
        return _not_found(response, request)
    if status in (429, 503):
        return Finding(
            "no-instance",
            f"no instance took the request ({status})",
            "The container does not start, fails its probes, or all --max-instances are busy: look at the logs, then "
            "raise the limit or fix the start.",
            (gcloud.logs(request.service),),
        )
    if status == 504:
        return Finding(
            "timed-out",
            "the service did not answer in time (504)",
            "The container took longer than the service's request timeout: look at the logs for what it waits for.",
            (gcloud.logs(request.service),),
        )
    if response.is_redirect:
        return _redirected(response, request)
    if status == 415:
        return Finding(
            "versions-refused",
            "the service offers no version of the manifest that Restate accepts (415)",
            "Upgrade the service's Restate SDK, or Restate itself.",
        )
    if status >= 500:
        return Finding(
            "service-failed",
            f"the service failed ({status})",
            "The request reached the service: look at its logs.",
            (gcloud.logs(request.service),),
        )
    return Finding(
        "unexpected-status",
        f"the response was {status}",
        "Is this a Restate endpoint? Check the url of the route, its path included.",
    )


def _behind_iap(response: Response, request: RequestInfo) -> Finding:
    if request.route.origin.host.endswith(".run.app"):
        advice = (
            "IAP is enabled on the service itself, so it covers the run.app URLs too. If nobody signs in there with a "
            "browser, disable it (`gcloud beta run services update … --no-iap`) and leave the service private: "
            "roles/run.invoker then decides who may call. Otherwise deploy the endpoint as a service of its own."
        )
    else:
        advice = (
            "If IAP belongs to a load balancer, set the url of the route to the service's run.app URL, which bypasses "
            "the load balancer; gcp_audience is not needed then."
        )
    return Finding(
        "iap",
        f"Identity-Aware Proxy (IAP) in front of the service refused the request ({response.status})",
        "IAP expects a sign-in, or a token in Authorization or Proxy-Authorization, which the sidecar leaves to the "
        f"application. IAP ignores X-Serverless-Authorization, which the sidecar adds. {advice}",
    )


def _redirected(response: Response, request: RequestInfo) -> Finding:
    route, redirect_target = request.route, response.redirect_target
    own = f"{route.base_path}/discover" if request.path is None else request.path
    if redirect_target in (f"{own}/", f"{route.origin}{own}/"):
        advice = "The service requires a trailing slash: mount the Restate endpoint so that it needs none."
    elif redirect_target.startswith("/") or response.redirect_host == route.origin.host:
        advice = "Set the url of the route to the path at which the Restate endpoint is mounted."
    else:
        advice = "Set the url of the route to the service itself; if a login page protects it, to its run.app URL."
    return Finding(
        "redirected",
        f"the response is a redirect to {redirect_target} ({response.status})",
        f"Restate does not follow redirects. {advice}",
    )


def _no_http2(status: int, request: RequestInfo) -> Finding:
    return Finding(
        "http2-not-end-to-end",
        f"Cloud Run and the container do not agree on HTTP/2 ({status}, protocol error)",
        "Deploy the service with --use-http2, and have the container speak HTTP/2 without TLS (h2c).",
        (gcloud.use_http2(request.service),),
    )


def _refused(response: Response, request: RequestInfo) -> Finding:
    status, route = response.status, request.route
    if response.from_sdk or (status == 401 and "www-authenticate" not in response.fields):
        return Finding(
            "identity-required",
            f"the container itself refused the request ({status}): Cloud Run accepted the token",
            "If the container verifies Restate's request identity, it accepts only your Restate server, and only if it "
            "has the public key of that server. Otherwise look at the container's own checks of Authorization.",
            (gcloud.logs(request.service),),
        )
    if not route.signed:
        return Finding(
            "unsigned-refused",
            f"the service is private, but the route adds no token ({status})",
            "Register the deployment again without --no-gcp-id-token (its header x-cloudrun-sidecar-gcp-id-token)."
            if route.is_open
            else "Remove gcp_id_token = false from the route.",
        )
    if status == 401:
        return _token_refused(request)
    principal = request.principal or "the principal of the token"
    return Finding(
        "invoker-missing",
        f"{principal} may not call the service (403)",
        f"Grant roles/run.invoker on the service to {principal} and wait a minute or two. If it has the role: the "
        "service's ingress setting may block requests that do not come through its VPC or load balancer.",
        (gcloud.grant_invoker(request.service, request.principal),),
    )


def _token_refused(request: RequestInfo) -> Finding:
    route, skew = request.route, request.skew_seconds
    if skew is not None and abs(skew) > MAX_SKEW_SECONDS:
        return Finding(
            "clock-wrong",
            f"the token is not accepted (401), and {skew_in_words(skew)}",
            CLOCK_REMEDY,
        )
    if route.audience != str(route.origin):
        remedy = (
            f"The route sets gcp_audience = {route.audience!r}: it must be exactly the service's run.app URL or one of "
            f"its custom audiences. Without gcp_audience, the audience is {route.origin}."
        )
    elif TAG_SEPARATOR in route.origin.host and route.origin.host.endswith(".run.app"):
        # https://cloud.google.com/run/docs/authenticating/service-to-service
        untagged = route.origin.host.partition(TAG_SEPARATOR)[2]
        remedy = (
            "The url is that of a traffic tag, for which Cloud Run wants a token for the service itself: set "
            f"gcp_audience to https://{untagged}."
        )
    elif route.origin.host.endswith(".run.app"):
        remedy = (
            "The audience must be exactly the service's own URL or one of its custom audiences. Compare it with the "
            "output of `gcloud run services describe`, and set gcp_audience. If it is right, see whether the account "
            "of the token was disabled or deleted."
        )
    else:
        remedy = (
            f"{route.origin.host} looks like a custom domain, which Cloud Run does not accept as an audience by "
            "default: set gcp_audience on the route to the service's run.app URL, or add the domain to its custom "
            "audiences."
        )
    return Finding(
        "audience-refused",
        f"the token for the audience {route.audience} is not accepted (401)",
        remedy,
        # A service accepts its own URLs without being told.
        () if route.audience.endswith(".run.app") else (gcloud.add_audience(request.service, route.audience),),
    )


def _not_found(response: Response, request: RequestInfo) -> Finding:
    route = request.route
    path = f"{route.base_path}/discover" if request.path is None else one_line(request.path)
    if response.from_sdk and not path.endswith("/discover"):
        return Finding(
            "not-found",
            f"the Restate SDK has no handler at {path} (404)",
            "The revision that serves traffic does not have this handler: deploy a revision that has it, or register "
            "the deployment again (restate deployments register --force URL).",
        )
    if response.from_sdk:
        return Finding(
            "not-found",
            f"the Restate SDK has no endpoint at {path} (404)",
            "Check the path in the url of the route: it must be the path at which the endpoint is mounted.",
        )
    return Finding(
        "not-found",
        f"there is nothing at {route.origin}{path} (404)",
        "Check the url of the route (service, region, project number, path). If it is right: the service's ingress "
        "setting may block requests that do not come through its VPC or load balancer; the response is the same.",
        ("gcloud run services list",),
    )

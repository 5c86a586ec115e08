"""What an answer means that is not the one a caller hoped for. Pure.

It may come from three places, and looks different from each: the front end (401 with a challenge, 403 and 404 as a web
page, `upstream connect error`), the container (`x-restate-server` where it is a Restate SDK), or something that is no
Cloud Run at all.

======================  ========================================================================================
code                    what it means
======================  ========================================================================================
`clock-wrong`           401, and this machine's clock and the service's differ by more than a minute
`audience-refused`      401 of the front end: the token is for somebody else
`identity-required`     401 or 403 of the container: it verifies requests by itself
`invoker-missing`       403: the principal has no `roles/run.invoker`, or ingress keeps us out
`unsigned-refused`      401 or 403 on a route that adds no token
`not-found`             404: another URL, or ingress
`http2-not-end-to-end`  the container is spoken to by HTTP/1.1: no `--use-http2`
`no-instance`           429, 503: nothing took the request
`timed-out`             504: the container did not answer in time
`service-failed`        another 5xx
`iap`                   Identity-Aware Proxy refused, before Cloud Run looked at the token
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

CLOCK_REMEDY: Final = "Tokens and signatures are good for a time: set the clock (NTP), then check again."


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """The request that was answered: what the sentences are about."""

    route: Route
    path: str | None = None
    """The path that the upstream was asked for, without query; None means a discovery's."""
    principal: str | None = None
    """Who the token speaks for; None where it does not say."""
    skew_seconds: float | None = None
    """How far this machine's clock is ahead of the service's; None where that is not known."""

    @property
    def service(self) -> gcloud.Service:
        """The Cloud Run service, as far as the URL tells."""
        return gcloud.service_of(self.route.origin.host)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and what mends it."""

    code: str
    """See the module."""
    text: str
    """What was found, in a line."""
    remedy: str
    """What to do, in a sentence or two."""
    commands: tuple[str, ...] = ()
    """Shell commands that do it; names in capitals are to be filled in."""


def diagnose(response: Response, request: RequestInfo) -> Finding:
    """Return what an answer means whose status is not 200."""
    status = response.status
    sidecar = response.fields.get(ERROR_FIELD.decode())
    if sidecar is not None:
        return Finding(
            "sidecar-answered",
            f"what answers there is a cloudrun-sidecar ({status}, {one_line(sidecar)})",
            "Set the url of the route to the Cloud Run service, not to a sidecar. If one is meant to stand there, its "
            "log says more.",
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
            "The container does not start, fails its probes, or --max-instances are all busy: look at the logs, then "
            "raise the limit or mend the start.",
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
            "The request did reach it: look at its logs.",
            (gcloud.logs(request.service),),
        )
    return Finding(
        "unexpected-status",
        f"the answer was {status}",
        "Is this a Restate endpoint? Check the url of the route, its path included.",
    )


def _behind_iap(response: Response, request: RequestInfo) -> Finding:
    if request.route.origin.host.endswith(".run.app"):
        way = (
            "IAP is switched on for the service itself, and covers its run.app URLs as well. If nobody has to sign in "
            "there with a browser, switch it off (`gcloud run services update … --no-iap`) and leave the service "
            "private: roles/run.invoker then decides. Otherwise deploy the endpoint as a service of its own."
        )
    else:
        way = (
            "If IAP belongs to a load balancer, set the url of the route to the service's run.app URL, which does not "
            "lead through it; gcp_audience is not needed then."
        )
    return Finding(
        "iap",
        f"Identity-Aware Proxy (IAP) stands before the service and refuses the request ({response.status})",
        "IAP looks for a sign-in, or for a token in Authorization or Proxy-Authorization, which the sidecar leaves to "
        f"the application; what it adds, in X-Serverless-Authorization, IAP does not look at. {way}",
    )


def _redirected(response: Response, request: RequestInfo) -> Finding:
    route, redirect_target = request.route, response.redirect_target
    own = f"{route.base_path}/discover" if request.path is None else request.path
    if redirect_target in (f"{own}/", f"{route.origin}{own}/"):
        advice = "The service wants a slash at the end of the path: mount the Restate endpoint so that it needs none."
    elif redirect_target.startswith("/") or response.redirect_host == route.origin.host:
        advice = "Set the url of the route to the path under which the Restate endpoint is mounted."
    else:
        advice = "Set the url of the route to the service itself; if a login page stands before it, to its run.app URL."
    return Finding(
        "redirected",
        f"the answer is a redirect to {redirect_target} ({response.status})",
        f"Restate follows none. {advice}",
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
            f"the container itself refuses ({status}): the token was accepted, and something behind it was not",
            "If it verifies Restate's request identity, only your Restate server can sign: anybody else is refused, "
            "and that server, too, where another one's key is expected. Otherwise look at the container's own checks "
            "of Authorization.",
            (gcloud.logs(request.service),),
        )
    if not route.signed:
        return Finding(
            "unsigned-refused",
            f"the service is private, and the route adds no token ({status})",
            "Remove gcp_id_token = false from the route.",
        )
    if status == 401:
        return _token_refused(request)
    who = request.principal or "the principal of the token"
    return Finding(
        "invoker-missing",
        f"{who} may not call the service (403)",
        f"Grant roles/run.invoker on the service to {who} and wait a minute or two. If it has the role: the service's "
        "ingress setting may keep out what does not come through its VPC or load balancer.",
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
            f"The route sets gcp_audience = {route.audience!r}: it must be the service's own run.app URL, or one of "
            f"its custom audiences, to the letter. Without gcp_audience it would be {route.origin}."
        )
    elif route.origin.host.endswith(".run.app"):
        remedy = (
            "It must be the service's own URL, or one of its custom audiences, to the letter. Compare it with what "
            "`gcloud run services describe` says (a URL of a traffic tag is one too), and set gcp_audience."
        )
    else:
        remedy = (
            f"{route.origin.host} looks like a custom domain, which Cloud Run does not take by itself: set "
            "gcp_audience on the route to the service's run.app URL, or make the domain one of its custom audiences."
        )
    return Finding(
        "audience-refused",
        f"the token for the audience {route.audience} is not accepted (401)",
        remedy,
        (gcloud.add_audience(request.service, route.audience),),
    )


def _not_found(response: Response, request: RequestInfo) -> Finding:
    route = request.route
    path = f"{route.base_path}/discover" if request.path is None else one_line(request.path)
    if response.from_sdk and not path.endswith("/discover"):
        return Finding(
            "not-found",
            f"the Restate SDK there has nothing at {path} (404)",
            "The revision that serves now does not have this handler: deploy one that has it, or register the "
            "deployment again (restate deployments register --force URL).",
        )
    if response.from_sdk:
        return Finding(
            "not-found",
            f"the Restate SDK there has nothing at {path} (404)",
            "Check the path in the url of the route: it must lead to where the endpoint is mounted.",
        )
    return Finding(
        "not-found",
        f"there is nothing at {route.origin}{path} (404)",
        "Check the url of the route (service, region, project number, path). If it is right: the service's ingress "
        "setting may keep out what does not come through its VPC or load balancer, which also looks like this.",
        ("gcloud run services list",),
    )

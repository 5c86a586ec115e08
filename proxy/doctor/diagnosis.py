"""What the answers to an unsigned request and to a discovery mean. Pure.

An answer may come from three places, and looks different from each: the front end (401 with a challenge, 403 and 404 as
a web page, `upstream connect error`), the container (`x-restate-server` where it is a Restate SDK), or something that
is no Cloud Run at all.

====================  ==========================================================================================
code                  what it means
====================  ==========================================================================================
`public`              an unsigned request was let in
`clock-wrong`         this machine's clock and the service's differ by more than a minute
`audience-refused`    401 of the front end: the token is for somebody else
`identity-required`   401 of the container: it verifies requests by itself
`invoker-missing`     403: the principal has no `roles/run.invoker`, or ingress keeps us out
`unsigned-refused`    401 or 403 on a route that adds no token
`not-found`           404: another URL, or ingress
`http2-not-end-to-end`  the container is spoken to by HTTP/1.1: no `--use-http2`
`no-instance`         429, 503: nothing took the request
`timed-out`           504: the container did not answer in time
`service-failed`      another 5xx
`iap`                 Identity-Aware Proxy refused, before Cloud Run looked at the token
`redirected`          another 3xx
`versions-refused`    415: the SDK and Restate have no manifest version in common
`not-restate`         200, and no manifest
`manifest-unreadable` the manifest is none
`no-services`         the manifest lists no service
`unexpected-status`   any other status
====================  ==========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from proxy.doctor import gcloud
from proxy.doctor.answer import Answer
from proxy.doctor.report import Outcome, Step, skipped
from proxy.quoting import one_line
from proxy.restate import is_manifest, manifest_services
from proxy.routing import Route

__all__ = ["Patient", "clock_step", "discovery_step", "private_step", "skew_seconds"]

MOST_SKEW_SECONDS: Final = 60.0
"""Restate's signature on a request is good for a minute either way; Google allows tokens some seconds only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """Who is examined: what the sentences are about."""

    route: Route
    principal: str | None = None
    """Who the token speaks for; None where it does not say."""
    skew_seconds: float | None = None
    """How far this machine's clock is ahead of the service's; None where that is not known."""

    @property
    def service(self) -> gcloud.Service:
        """The Cloud Run service, as far as the URL tells."""
        return gcloud.service_of(self.route.origin.host)


def skew_seconds(answer: Answer, now: float) -> float | None:
    """Return how far `now` is ahead of the answer's `date` (whole seconds, RFC 9110, 6.6.1); None without one."""
    try:
        return now - parsedate_to_datetime(answer.fields["date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None


def clock_step(skew: float | None) -> Step:
    """Return the step that compares clocks."""
    if skew is None:
        return skipped("clock", "the answers tell no time")
    details = {"skew_seconds": round(skew)}
    if abs(skew) <= MOST_SKEW_SECONDS:
        text = "agrees with the service's to the second" if abs(skew) < 2 else f"{abs(skew):.0f} s from the service's"
        return Step(name="clock", outcome=Outcome.OK, text=text, details=details)
    return Step(
        name="clock",
        outcome=Outcome.WARNING,
        code="clock-wrong",
        text=f"the clock of this machine is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}",
        remedy=_SET_CLOCK,
        details=details,
    )


_SET_CLOCK: Final = "Tokens and signatures are good for a time: set the clock (NTP), then check again."


def private_step(answer: Answer, patient: Patient) -> Step:
    """Return what the answer to an unsigned request says about who may call the service."""
    details: dict[str, Any] = {"status": answer.status}
    if answer.from_iap:
        text = f"an unsigned request is refused by Identity-Aware Proxy (IAP), which stands before it ({answer.status})"
        return Step(name="private", outcome=Outcome.OK, text=text, details=details)
    if answer.redirects:
        text = f"cannot be told: an unsigned request is redirected to {answer.target} ({answer.status})"
        return Step(name="private", outcome=Outcome.SKIPPED, text=text, details=details)
    refused = answer.status == 403 or (answer.status == 401 and "www-authenticate" in answer.fields)
    if refused and not answer.from_sdk:
        text = f"an unsigned request is refused ({answer.status})"
        return Step(name="private", outcome=Outcome.OK, text=text, details=details)
    if not answer.from_sdk and (answer.status in (401, 404, 429) or answer.status >= 500):
        return Step(
            name="private",
            outcome=Outcome.SKIPPED,
            text=f"cannot be told: an unsigned request got {answer.status}",
            details=details,
        )
    return Step(
        name="private",
        outcome=Outcome.WARNING,
        code="public",
        text=f"the service is public: it answered a request without a token ({answer.status})",
        remedy=(
            "Anybody who finds the URL can call it. Take the role from allUsers; if the service was deployed with "
            "--no-invoker-iam-check, turn that check on again."
        ),
        commands=(gcloud.revoke_public(patient.service),),
        details=details,
    )


def discovery_step(answer: Answer, patient: Patient) -> Step:
    """Return what the answer to a discovery means."""
    details: dict[str, Any] = {"status": answer.status}
    if answer.status == 200:
        return _manifest_step(answer, details)
    finding = _finding(answer, patient)
    said = answer.excerpt()
    if said:
        details["said"] = said
    return Step(
        name="discovery",
        outcome=Outcome.FAILED,
        code=finding.code,
        text=finding.text,
        remedy=finding.remedy,
        commands=finding.commands,
        details=details,
    )


@dataclass(frozen=True, slots=True)
class _Finding:
    code: str
    text: str
    remedy: str
    commands: tuple[str, ...] = ()


def _finding(answer: Answer, patient: Patient) -> _Finding:
    status = answer.status
    if answer.from_iap:
        return _behind_iap(answer, patient)
    if "upstream connect error" in answer.excerpt() and "protocol error" in answer.excerpt():
        return _no_http2(status, patient)
    if status in (401, 403):
        return _refused(answer, patient)
    if status == 404:
        return _not_found(answer, patient)
    if status in (429, 503):
        return _Finding(
            "no-instance",
            f"no instance took the request ({status})",
            "The container does not start, fails its probes, or --max-instances are all busy: look at the logs, then "
            "raise the limit or mend the start.",
            (gcloud.logs(patient.service),),
        )
    if status == 504:
        return _Finding(
            "timed-out",
            "the service did not answer in time (504)",
            "The container took longer than the service's request timeout: look at the logs for what it waits for.",
            (gcloud.logs(patient.service),),
        )
    if answer.redirects:
        return _redirected(answer, patient)
    if status == 415:
        return _Finding(
            "versions-refused",
            "the service offers no version of the manifest that Restate accepts (415)",
            "Upgrade the service's Restate SDK, or Restate itself.",
        )
    if status >= 500:
        return _Finding(
            "service-failed",
            f"the service failed ({status})",
            "The request did reach it: look at its logs.",
            (gcloud.logs(patient.service),),
        )
    return _Finding(
        "unexpected-status",
        f"the answer to a discovery was {status}",
        "Is this a Restate endpoint? Check the url of the route, its path included.",
    )


def _behind_iap(answer: Answer, patient: Patient) -> _Finding:
    if patient.route.origin.host.endswith(".run.app"):
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
    return _Finding(
        "iap",
        f"Identity-Aware Proxy (IAP) stands before the service and refuses the request ({answer.status})",
        "IAP looks for a sign-in, or for a token in Authorization or Proxy-Authorization, which the sidecar leaves to "
        f"the application; what it adds, in X-Serverless-Authorization, IAP does not look at. {way}",
    )


def _redirected(answer: Answer, patient: Patient) -> _Finding:
    route, target = patient.route, answer.target
    own = f"{route.base_path}/discover"
    if target in (f"{own}/", f"{route.origin}{own}/"):
        advice = "The service wants a slash at the end of the path: mount the Restate endpoint so that it needs none."
    elif target.startswith("/") or answer.target_host == route.origin.host:
        advice = "Set the url of the route to the path under which the Restate endpoint is mounted."
    else:
        advice = "Set the url of the route to the service itself; if a login page stands before it, to its run.app URL."
    return _Finding(
        "redirected",
        f"the answer is a redirect to {target} ({answer.status})",
        f"Restate follows none. {advice}",
    )


def _no_http2(status: int, patient: Patient) -> _Finding:
    return _Finding(
        "http2-not-end-to-end",
        f"Cloud Run and the container do not agree on HTTP/2 ({status}, protocol error)",
        "Deploy the service with --use-http2, and have the container speak HTTP/2 without TLS (h2c).",
        (gcloud.use_http2(patient.service),),
    )


def _refused(answer: Answer, patient: Patient) -> _Finding:
    status, route = answer.status, patient.route
    if answer.from_sdk or (status == 401 and "www-authenticate" not in answer.fields):
        return _Finding(
            "identity-required",
            f"the container itself refuses ({status}): the token was accepted, and something behind it was not",
            "If it verifies Restate's request identity, that is as it should be: only your Restate server can "
            "sign; register the deployment to see. Otherwise look at the container's own checks of Authorization.",
            (gcloud.logs(patient.service),),
        )
    if not route.signed:
        return _Finding(
            "unsigned-refused",
            f"the service is private, and the route adds no token ({status})",
            "Remove gcp_id_token = false from the route.",
        )
    if status == 401:
        return _token_refused(patient)
    who = patient.principal or "the principal of the token"
    return _Finding(
        "invoker-missing",
        f"{who} may not call the service (403)",
        f"Grant roles/run.invoker on the service to {who} and wait a minute or two. If it has the role: the service's "
        "ingress setting may keep out what does not come through its VPC or load balancer.",
        (gcloud.grant_invoker(patient.service, patient.principal),),
    )


def _token_refused(patient: Patient) -> _Finding:
    route, skew = patient.route, patient.skew_seconds
    if skew is not None and abs(skew) > MOST_SKEW_SECONDS:
        way = "ahead" if skew > 0 else "behind"
        return _Finding(
            "clock-wrong",
            f"the token is not accepted (401), and the clock of this machine is {abs(skew):.0f} s {way}",
            _SET_CLOCK,
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
    return _Finding(
        "audience-refused",
        f"the token for the audience {route.audience} is not accepted (401)",
        remedy,
        (gcloud.add_audience(patient.service, route.audience),),
    )


def _not_found(answer: Answer, patient: Patient) -> _Finding:
    route = patient.route
    path = f"{route.base_path}/discover"
    if answer.from_sdk:
        return _Finding(
            "not-found",
            f"the Restate SDK there has nothing at {path} (404)",
            "Check the path in the url of the route: it must lead to where the endpoint is mounted.",
        )
    return _Finding(
        "not-found",
        f"there is nothing at {route.origin}{path} (404)",
        "Check the url of the route (service, region, project number, path). If it is right: the service's ingress "
        "setting may keep out what does not come through its VPC or load balancer, which also looks like this.",
        ("gcloud run services list",),
    )


def _manifest_step(answer: Answer, details: dict[str, Any]) -> Step:
    kind = one_line(answer.fields.get("content-type", ""))

    def failed(code: str, text: str, remedy: str) -> Step:
        return Step(name="discovery", outcome=Outcome.FAILED, code=code, text=text, remedy=remedy, details=details)

    details["content_type"] = kind
    if not is_manifest(kind):
        return failed(
            "not-restate",
            f"what answers there is no Restate endpoint: 200 with {kind or 'no content type'}",
            "Check the url of the route. If another application is meant to stand before the endpoint, put the path "
            "under which the endpoint is mounted into the url.",
        )
    try:
        services = manifest_services(answer.body)
    except ValueError:
        return failed(
            "manifest-unreadable",
            "the answer says that it is a manifest and is none",
            "Look at what stands between here and the service; upgrade its Restate SDK.",
        )
    shown = {one_line(name): [one_line(handler) for handler in handlers] for name, handlers in services.items()}
    details["services"] = shown
    if not shown:
        return failed("no-services", "the endpoint lists no service", "Bind services to it, deploy, and check again.")
    text = " · ".join(f"{name} ({', '.join(handlers)})" for name, handlers in shown.items())
    return Step(name="discovery", outcome=Outcome.OK, text=text, details=details)

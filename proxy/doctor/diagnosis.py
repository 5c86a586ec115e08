"""The steps `private`, `clock` and `discovery`: the responses to an unsigned request and to a discovery. Pure.

`proxy.cloud_run.findings` names the problems of error responses; these are the others:

=====================  ======================================================================
problem                cause
=====================  ======================================================================
`public`               the service accepted an unsigned request
`clock-wrong`          this machine's clock and the service's differ by more than a minute
`not-restate`          200, but the content is not a manifest
`manifest-unreadable`  the manifest cannot be parsed
`no-services`          the manifest lists no service
=====================  ======================================================================
"""

from __future__ import annotations

from typing import Any

from proxy.clock_skew import MAX_SKEW_SECONDS, skew_in_words
from proxy.cloud_run import gcloud
from proxy.cloud_run.findings import CLOCK_REMEDY, RequestInfo, diagnose
from proxy.cloud_run.response import Response
from proxy.doctor.report import Outcome, Step, failed, skipped
from proxy.quoting import one_line
from proxy.restate import is_manifest, manifest_services

__all__ = ["clock_step", "discovery_step", "private_step"]


def clock_step(skew: float | None) -> Step:
    """Return the step `clock` for this skew in seconds; None if no response had a date."""
    if skew is None:
        return skipped("clock", "the responses have no date")
    details = {"skew_seconds": round(skew)}
    if abs(skew) <= MAX_SKEW_SECONDS:
        text = "agrees with the service's to the second" if abs(skew) < 2 else f"{abs(skew):.0f} s from the service's"
        return Step(name="clock", outcome=Outcome.OK, text=text, details=details)
    return Step(
        name="clock",
        outcome=Outcome.WARNING,
        code="clock-wrong",
        text=skew_in_words(skew),
        remedy=CLOCK_REMEDY,
        details=details,
    )


def private_step(response: Response, request: RequestInfo) -> Step:
    """Return the step `private` for the response to an unsigned request."""
    details: dict[str, Any] = {"status": response.status}
    if response.from_iap:
        text = f"Identity-Aware Proxy (IAP) in front of the service refuses unsigned requests ({response.status})"
        return Step(name="private", outcome=Outcome.OK, text=text, details=details)
    if response.is_redirect:
        text = f"inconclusive: an unsigned request is redirected to {response.redirect_target} ({response.status})"
        return Step(name="private", outcome=Outcome.SKIPPED, text=text, details=details)
    refused = response.status == 403 or (response.status == 401 and "www-authenticate" in response.fields)
    if refused and not response.from_sdk:
        text = f"an unsigned request is refused ({response.status})"
        return Step(name="private", outcome=Outcome.OK, text=text, details=details)
    if not response.from_sdk and (response.status in (401, 404, 429) or response.status >= 500):
        return Step(
            name="private",
            outcome=Outcome.SKIPPED,
            text=f"inconclusive: the response to an unsigned request was {response.status}",
            details=details,
        )
    return Step(
        name="private",
        outcome=Outcome.WARNING,
        code="public",
        text=f"the service is public: it answered a request without a token ({response.status})",
        remedy=(
            "Anyone with the URL can call it. Revoke the role of allUsers; if the service was deployed with "
            "--no-invoker-iam-check, enable that check again."
        ),
        commands=(gcloud.revoke_public(request.service),),
        details=details,
    )


def discovery_step(response: Response, request: RequestInfo) -> Step:
    """Return the step `discovery` for the response to a discovery."""
    details: dict[str, Any] = {"status": response.status}
    if response.status == 200:
        return _manifest_step(response, details)
    found = diagnose(response, request)
    said = response.excerpt()
    if said:
        details["said"] = said
    return failed("discovery", found.code, found.text, found.remedy, found.commands, details)


def _manifest_step(response: Response, details: dict[str, Any]) -> Step:
    kind = one_line(response.fields.get("content-type", ""))
    details["content_type"] = kind
    if not is_manifest(kind):
        text = f"this is not a Restate endpoint: 200 with {kind or 'no content type'}"
        remedy = (
            "Check the url of the route. If the endpoint is part of another application, add the path at which the "
            "endpoint is mounted to the url."
        )
        return failed("discovery", "not-restate", text, remedy, details=details)
    try:
        services = manifest_services(response.body)
    except ValueError:
        text = "the manifest cannot be parsed"
        remedy = "Check the proxies between the sidecar and the service; upgrade the service's Restate SDK."
        return failed("discovery", "manifest-unreadable", text, remedy, details=details)
    shown = {one_line(name): [one_line(handler) for handler in handlers] for name, handlers in services.items()}
    details["services"] = shown
    if not shown:
        text, remedy = "the endpoint lists no service", "Bind services to it, deploy, and check again."
        return failed("discovery", "no-services", text, remedy, details=details)
    text = " · ".join(f"{name} ({', '.join(handlers)})" for name, handlers in shown.items())
    return Step(name="discovery", outcome=Outcome.OK, text=text, details=details)

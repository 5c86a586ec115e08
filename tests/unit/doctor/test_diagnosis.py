from __future__ import annotations

from email.utils import formatdate

import pytest

from proxy.clock_skew import skew_seconds
from proxy.cloud_run.findings import RequestInfo
from proxy.cloud_run.response import Response
from proxy.doctor.diagnosis import clock_step, discovery_step, private_step
from proxy.doctor.report import Outcome
from proxy.routes import AllowLists, OpenRoutes, Origin, Route
from proxy.routes.open_routes import ID_TOKEN_FIELD

HOST = "greeter-123456789012.europe-west1.run.app"
PROJECT = "--project=$(gcloud projects describe 123456789012 --format='value(projectId)')"
WHO = "restate@project.iam.gserviceaccount.com"
MANIFEST = "application/vnd.restate.endpointmanifest.v4+json"
OF_SDK = {"x-restate-server": "restate-sdk/1"}
CHALLENGE = {"www-authenticate": 'Bearer error="invalid_token"'}


def route(host: str = HOST, *, audience: str = "", signed: bool = True, base_path: str = "") -> Route:
    return Route(
        name="greeter", origin=Origin("https", host, 443), audience=audience, signed=signed, base_path=base_path
    )


def call(of: Route | None = None, *, skew: float | None = None, principal: str | None = WHO) -> RequestInfo:
    return RequestInfo(route=of or route(), principal=principal, skew_seconds=skew)


def answer(status: int, body: str = "", **fields: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in fields.items()}, body.encode())


# ---- private


@pytest.mark.parametrize("refusal", [answer(403), Response(401, CHALLENGE, b"")])
def test_a_service_that_refuses_unsigned_requests_is_private(refusal: Response) -> None:
    step = private_step(refusal, call())
    assert (step.outcome, step.code) == (Outcome.OK, None)


@pytest.mark.parametrize("undecided", [answer(401), answer(404), answer(429), answer(500), answer(503)])
def test_a_status_of_both_front_end_and_container_is_inconclusive(undecided: Response) -> None:
    assert private_step(undecided, call()).outcome is Outcome.SKIPPED


@pytest.mark.parametrize(
    "open_", [answer(200), answer(204), answer(400), Response(401, OF_SDK, b""), Response(404, OF_SDK, b"")]
)
def test_any_response_of_the_container_to_an_unsigned_request_means_public(open_: Response) -> None:
    step = private_step(open_, call())
    assert (step.outcome, step.code) == (Outcome.WARNING, "public")
    assert step.commands == (
        "gcloud run services remove-iam-policy-binding greeter --region=europe-west1 --member=allUsers "
        f"--role=roles/run.invoker {PROJECT}",
    )


IAP = {"x-goog-iap-generated-response": "true"}
SIGN_IN = {"location": "https://accounts.google.com/o/oauth2/v2/auth?client_id=x&state=secret"}


@pytest.mark.parametrize(
    "refusal",
    [
        Response(302, {**IAP, **SIGN_IN}, b""),
        Response(302, SIGN_IN, b""),
        Response(401, IAP, b"Invalid IAP credentials: empty token"),
        Response(403, IAP, b""),
    ],
)
@pytest.mark.parametrize("host", [HOST, "greeter.example.com"])
def test_identity_aware_proxy_is_not_public_and_is_explained(refusal: Response, host: str) -> None:
    of = call(route(host))
    private = private_step(refusal, of)
    assert (private.outcome, private.code, private.commands) == (Outcome.OK, None, ())
    assert "Identity-Aware Proxy" in private.text
    step = discovery_step(refusal, of)
    assert (step.outcome, step.code, step.commands) == (Outcome.FAILED, "iap", ())
    assert step.remedy
    assert "Authorization or Proxy-Authorization" in step.remedy
    assert ("--no-iap" in step.remedy) == (host == HOST)
    assert "secret" not in f"{private.text} {step.text} {step.remedy}"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/elsewhere?token=secret#secret", "/elsewhere"),
        ("https://svc.example/login?next=secret", "https://svc.example/login"),
        ("https://me:secret@svc.example/", "a place that is not shown"),
        ("//svc.example/x", "//svc.example/x"),
        ("https://[", "https://["),
        ("", "nowhere"),
        ("/eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "a place that is not shown"),
    ],
)
def test_a_redirect_is_never_a_public_service(status: int, location: str, shown: str) -> None:
    redirect = Response(status, {"location": location} if location else {}, b"")
    private = private_step(redirect, call())
    assert (private.outcome, private.code, private.commands) == (Outcome.SKIPPED, None, ())
    assert f"redirected to {shown} ({status})" in private.text
    step = discovery_step(redirect, call())
    assert (step.code, step.commands) == ("redirected", ())
    assert f"a redirect to {shown} ({status})" in step.text
    assert "secret" not in f"{private.text} {step.text} {step.remedy}"


@pytest.mark.parametrize(
    ("location", "advice"),
    [
        ("/restate/discover/", "requires a trailing slash"),
        (f"https://{HOST}/restate/discover/", "requires a trailing slash"),
        ("/v2/discover", "the path at which"),
        (f"https://{HOST}/v2/discover", "the path at which"),
        ("https://other.example/", "the service itself"),
    ],
)
def test_the_target_of_a_redirect_decides_the_advice(location: str, advice: str) -> None:
    step = discovery_step(answer(301, location=location), call(route(base_path="/restate")))
    assert step.remedy
    assert advice in step.remedy


# ---- clock


def test_skew_is_the_time_ahead_of_the_date_of_a_response() -> None:
    assert skew_seconds(answer(200, date=formatdate(1_000, usegmt=True)).fields.get("date"), 1_090.0) == 90.0


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_without_a_date_there_is_no_skew(date: str | None) -> None:
    fields = {} if date is None else {"date": date}
    assert skew_seconds(Response(200, fields, b"").fields.get("date"), 0.0) is None


@pytest.mark.parametrize(
    ("skew", "outcome", "words"),
    [
        (None, Outcome.SKIPPED, "have no date"),
        (0.4, Outcome.OK, "agrees"),
        (-59.0, Outcome.OK, "59 s from"),
        (61.0, Outcome.WARNING, "61 s ahead"),
        (-61.0, Outcome.WARNING, "61 s behind"),
    ],
)
def test_a_minute_of_skew_is_allowed(skew: float | None, outcome: Outcome, words: str) -> None:
    step = clock_step(skew)
    assert step.outcome is outcome
    assert words in step.text


# ---- discovery


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (Response(401, CHALLENGE, b""), "audience-refused", f"https://{HOST}"),
        (answer(401, "who are you"), "identity-required", "request identity"),
        (Response(401, {**CHALLENGE, **OF_SDK}, b""), "identity-required", "request identity"),
        (Response(403, OF_SDK, b""), "identity-required", "request identity"),
        (answer(403), "invoker-missing", WHO),
        (answer(404), "not-found", "ingress"),
        (Response(404, OF_SDK, b""), "not-found", "path in the url"),
        (answer(415), "versions-refused", "Upgrade"),
        (answer(429), "no-instance", "--max-instances"),
        (answer(500), "service-failed", "logs"),
        (answer(502, "upstream connect error … reset reason: protocol error"), "http2-not-end-to-end", "--use-http2"),
        (answer(503, "upstream connect error … reset reason: connection failure"), "no-instance", "logs"),
        (answer(504), "timed-out", "timeout"),
        (answer(302, location="https://accounts.google.com/o?secret=1"), "iap", "--no-iap"),
        (answer(302, location="https://login.example/o?secret=1"), "redirected", "login.example/o "),
        (answer(307), "redirected", "nowhere"),
        (answer(204), "unexpected-status", "204"),
        (answer(400), "unexpected-status", "400"),
    ],
)
def test_each_response_has_its_finding(given: Response, code: str, words: str) -> None:
    step = discovery_step(given, call())
    assert (step.name, step.outcome, step.code) == ("discovery", Outcome.FAILED, code)
    assert step.remedy
    assert words in " ".join([step.text, step.remedy, *step.commands])
    assert step.details["status"] == given.status


def test_the_command_for_a_missing_role_is_complete() -> None:
    step = discovery_step(answer(403), call())
    assert step.commands == (
        "gcloud run services add-iam-policy-binding greeter --region=europe-west1 "
        f"--member=serviceAccount:{WHO} --role=roles/run.invoker {PROJECT}",
    )


def test_an_unknown_principal_becomes_a_placeholder() -> None:
    step = discovery_step(answer(403), call(principal=None))
    assert "the principal of the token may not call" in step.text
    assert "--member=PRINCIPAL" in step.commands[0]


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (route(), "gcloud run services describe"),
        (route("blue---greeter-abc-ew.a.run.app"), "set gcp_audience to https://greeter-abc-ew.a.run.app"),
        (route("greeter.example.com"), "custom domain"),
        (route(audience="https://other"), "The route sets gcp_audience = 'https://other'"),
    ],
)
def test_a_refused_audience_is_reported_with_the_setting(of: Route, words: str) -> None:
    step = discovery_step(Response(401, CHALLENGE, b""), call(of))
    assert step.remedy
    assert of.audience in step.text
    assert words in step.remedy
    assert "gcp_audience" in step.remedy


@pytest.mark.parametrize(("skew", "code"), [(61.0, "clock-wrong"), (-61.0, "clock-wrong"), (60.0, "audience-refused")])
def test_a_refused_token_with_a_wrong_clock_blames_the_clock(skew: float, code: str) -> None:
    assert discovery_step(Response(401, CHALLENGE, b""), call(skew=skew)).code == code


@pytest.mark.parametrize("refusal", [answer(403), Response(401, CHALLENGE, b"")])
def test_an_unsigned_route_to_a_private_service_is_reported(refusal: Response) -> None:
    step = discovery_step(refusal, call(route(signed=False)))
    assert (step.code, step.remedy) == ("unsigned-refused", "Remove gcp_id_token = false from the route.")


def test_an_unsigned_deployment_of_a_private_service_gets_the_flag_as_remedy() -> None:
    opened = OpenRoutes(AllowLists((HOST,), (), ())).route(HOST, ((ID_TOKEN_FIELD.encode(), b"false"),))
    step = discovery_step(answer(403), call(opened))
    assert step.code == "unsigned-refused"
    assert step.remedy
    assert step.remedy.startswith("Register the deployment again without --no-gcp-id-token")


@pytest.mark.parametrize(
    ("of", "commands"),
    [
        (route(), 0),
        (route("blue---greeter-abc-ew.a.run.app"), 0),
        (route(audience="https://other-123456789012.europe-west1.run.app"), 0),
        (route(audience="greeter"), 1),
        (route("greeter.example.com"), 1),
    ],
)
def test_only_a_custom_audience_is_to_be_added_to_the_service(of: Route, commands: int) -> None:
    step = discovery_step(Response(401, CHALLENGE, b""), call(of))
    assert len(step.commands) == commands
    assert all(f"--add-custom-audiences={of.audience}" in command for command in step.commands)


def test_not_found_names_the_path() -> None:
    assert f"https://{HOST}/restate/discover" in discovery_step(answer(404), call(route(base_path="/restate"))).text


def test_a_manifest_lists_services_and_handlers() -> None:
    greeter = '{"name": "Greeter", "handlers": [{"name": "greet"}, {"name": "bye"}]}'
    body = f'{{"services": [{greeter}, {{"name": "N", "handlers": []}}]}}'
    step = discovery_step(answer(200, body, content_type=MANIFEST), call())
    assert (step.outcome, step.text) == (Outcome.OK, "Greeter (greet, bye) · N ()")
    assert step.details["services"] == {"Greeter": ["greet", "bye"], "N": []}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (answer(200, "<html>", content_type="text/html; charset=utf-8"), "not-restate"),
        (answer(200, "{}"), "not-restate"),
        (answer(200, "not JSON", content_type=MANIFEST), "manifest-unreadable"),
        (answer(200, '{"services": 1}', content_type=MANIFEST), "manifest-unreadable"),
        (answer(200, '{"services": []}', content_type=MANIFEST), "no-services"),
    ],
)
def test_a_200_without_a_manifest_is_not_a_restate_endpoint(given: Response, code: str) -> None:
    step = discovery_step(given, call())
    assert (step.outcome, step.code) == (Outcome.FAILED, code)
    assert step.remedy


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ("<title>403</title><h1>Forbidden</h1> <p>No\n entry", "text/html", "Forbidden No entry"),
        ('{"error": "no"}', "application/json", '{"error": "no"}'),
        ("\x00\x01", "application/octet-stream", ""),
        ("", "text/plain", ""),
    ],
)
def test_a_text_body_is_quoted_without_mark_up(body: str, kind: str, expected: str) -> None:
    given = answer(500, body, content_type=kind)
    assert given.excerpt() == expected
    assert discovery_step(given, call()).details.get("said", "") == expected


def test_the_repr_of_a_response_has_neither_fields_nor_body() -> None:
    assert repr(answer(200, "secret", x="secret")) == "Response(status=200)"

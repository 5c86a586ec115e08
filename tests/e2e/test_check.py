"""The real command against broken set-ups: each gets the right diagnosis, and the remedy that mends it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from pathlib import Path

import jsonschema
import pytest
from aiohttp import web

from proxy.emulator import Fault, Google, echo
from proxy.emulator.cloud_run import Receive, Scope, Send
from tests.support.pasted import PASTED, told_of
from tests.support.patient import Patient, Ran, answering, patient

TARGET = "invoker@samples.iam.gserviceaccount.com"
NAMES = ["credentials", "token", "dns", "tcp", "tls", "http2", "private", "clock", "discovery"]

PROTOCOL_ERROR = "upstream connect error or disconnect/reset before headers. reset reason: protocol error"

FORM = {
    "type": "object",
    "required": ["version", "outcome", "routes"],
    "additionalProperties": False,
    "properties": {
        "version": {"const": 1},
        "outcome": {"enum": ["ok", "warning", "failed"]},
        "routes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["route", "url", "audience", "outcome", "steps"],
                "additionalProperties": False,
                "properties": {
                    "route": {"type": "string"},
                    "url": {"type": "string"},
                    "audience": {"type": ["string", "null"]},
                    "outcome": {"enum": ["ok", "warning", "failed"]},
                    "steps": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["step", "outcome", "code", "text", "remedy", "commands", "details"],
                            "additionalProperties": False,
                            "properties": {
                                "step": {"enum": NAMES},
                                "outcome": {"enum": ["ok", "warning", "failed", "skipped"]},
                                "code": {"type": ["string", "null"]},
                                "text": {"type": "string", "minLength": 1},
                                "remedy": {"type": ["string", "null"]},
                                "commands": {"type": "array", "items": {"type": "string"}},
                                "details": {"type": "object"},
                            },
                        },
                    },
                },
            },
        },
    },
}


def assert_told(ran: Ran, step: str, code: str, *telling: str) -> None:
    """Assert exit code 1, that this is the one step that failed, and that the remedy (or a command) says all of it."""
    assert (ran.code, ran.err) == (1, ""), ran.err
    jsonschema.validate(ran.document, FORM)
    assert ran.faults() == {step: code}
    found = ran.steps()[step]
    assert found["remedy"]
    said = " ".join([found["text"], found["remedy"], *found["commands"]])
    for words in telling:
        assert words in said
    assert "eyJ" not in ran.out
    assert "ya29." not in ran.out


# ---- nothing is wrong


@pytest.mark.asyncio
async def test_a_set_up_that_works_is_well_in_every_step(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.front.ahead_seconds = 0
        ran = await here.check()
        assert (ran.code, ran.err) == (0, "")
        jsonschema.validate(ran.document, FORM)
        assert [step["step"] for step in ran.document["routes"][0]["steps"]] == NAMES
        steps = ran.steps()
        assert {step["outcome"] for step in steps.values()} == {"ok"}
        account = here.google.metadata_account
        assert steps["credentials"]["details"] == {
            "source": "metadata",
            "place": here.endpoints.metadata_address,
            "named_by": "GCE_METADATA_HOST",
            "principal": account,
        }
        claims = steps["token"]["details"]
        assert (claims["aud"], claims["email"]) == (here.url, account)
        assert 3500 < claims["remaining_seconds"] <= 3600
        assert steps["tls"]["details"]["issuer"] == "emulated Google, throw-away authority"
        assert steps["tls"]["details"]["remaining_days"] == 29
        services = steps["discovery"]["details"]["services"]
        assert services["Greeter"] == ["greet"]
        assert set(services) == {"Greeter", "Counter", "Sleeper", "Worker", "Trouble", "Echo"}


@pytest.mark.asyncio
async def test_all_routes_are_told_in_order_and_only_those_that_are_named_are_tried(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        config = tmp_path / "routes.toml"
        urls = {"b": f"{here.url}/b", "a": "https://nowhere.invalid", "c": here.url}
        config.write_text("".join(f'[routes.{name}]\nurl = "{url}"\n' for name, url in urls.items()))
        ran = await here.run("check", "--config", config)
        assert (ran.code, ran.err) == (1, "")
        assert re.findall(r"^/\w  \S+", ran.out, re.MULTILINE) == [
            f"/b  {here.url}/b",
            "/a  https://nowhere.invalid",
            f"/c  {here.url}",
        ]
        assert ran.out.endswith("\n3 routes: 2 well, 1 failing\n")
        assert "\x1b" not in ran.out
        named = await here.run("check", "/c", "b", "--config", config)
        assert named.code == 0
        assert re.findall(r"^/\w", named.out, re.MULTILINE) == ["/c", "/b"]


# ---- credentials and tokens


@pytest.mark.asyncio
async def test_no_credentials_anywhere(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.environment["NO_GCE_CHECK"] = "true"
        ran = await here.check()
        assert_told(ran, "credentials", "credentials-not-found", "Set GOOGLE_APPLICATION_CREDENTIALS")
        assert ran.steps()["token"]["outcome"] == "skipped"
        assert ran.steps()["private"]["outcome"] == "ok"


@pytest.mark.asyncio
async def test_a_credential_file_that_is_not_there(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.environment["GOOGLE_APPLICATION_CREDENTIALS"] = "/nonexistent/key.json"
        ran = await here.check()
        assert_told(ran, "credentials", "credentials-invalid", "'/nonexistent/key.json'", "No such file")


@pytest.mark.asyncio
@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
async def test_a_credential_in_the_place_of_its_path(tmp_path: Path, pasted: str) -> None:
    async with patient(tmp_path) as here:
        here.environment["GOOGLE_APPLICATION_CREDENTIALS"] = pasted
        ran = await here.check()
        assert_told(ran, "credentials", "credentials-invalid", "GOOGLE_APPLICATION_CREDENTIALS must be the path")
        shown = await here.run("check", "--upstream", here.url)
        assert shown.code == 1
        assert told_of(pasted, ran.out + shown.out + shown.err) == []


@pytest.mark.asyncio
async def test_user_credentials_without_impersonation(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        path = here.with_key(here.google.user_file("ada@example.com"))
        ran = await here.check()
        assert_told(ran, "token", "ambient-unsupported", str(path), "gcp_impersonate_service_account", "key file")
        assert ran.steps()["credentials"]["details"]["named_by"] == "GOOGLE_APPLICATION_CREDENTIALS"


@pytest.mark.asyncio
async def test_a_key_that_was_deleted(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        path = here.with_key(Google().key_file("gone@samples.iam.gserviceaccount.com", here.endpoints.token_uri))
        ran = await here.check()
        assert_told(ran, "token", "credentials-rejected", str(path), "create a new key")
        assert "gone@samples.iam.gserviceaccount.com" in ran.steps()["credentials"]["text"]


@pytest.mark.asyncio
async def test_impersonation_that_is_not_granted(tmp_path: Path) -> None:
    async with patient(tmp_path, api_hosts=True) as here:
        here.google.add_account(TARGET)
        caller = here.google.metadata_account
        ran = await here.check("--gcp-impersonate-service-account", TARGET)
        assert_told(
            ran,
            "token",
            "impersonation-denied",
            f"{caller} may not impersonate {TARGET}",
            f"gcloud iam service-accounts add-iam-policy-binding {TARGET} --project=samples "
            f"--member=serviceAccount:{caller} --role=roles/iam.serviceAccountOpenIdTokenCreator",
        )
        here.google.allow_impersonation(caller, TARGET)
        here.cloud_run.invokers.add(TARGET)
        assert (await here.check("--gcp-impersonate-service-account", TARGET)).code == 0


@pytest.mark.asyncio
async def test_a_metadata_server_that_hangs(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.google.fail("metadata", Fault.HANG)
        ran = await here.check("--mint-timeout", "0.5")
        assert_told(ran, "credentials", "token-timeout", "0.5 s")


GKE_ANSWERS = {
    "service-accounts/default/email": (200, "my-project.svc.id.goog"),
    "service-accounts/default/identity": (
        404,
        "the Kubernetes account lacks the annotation iam.gke.io/gcp-service-account\n",
    ),
    "project/numeric-project-id": (200, "123456789012"),
}


async def gke(request: web.BaseRequest) -> web.Response:
    """Answer as GKE's metadata server does to a pod whose Kubernetes account is linked to no service account."""
    found = [answer for path, answer in GKE_ANSWERS.items() if request.path.endswith(path)]
    status, text = found[0] if found else (404, "404 page not found\n")
    return web.Response(status=status, text=text, headers={"Metadata-Flavor": "Google"})


@pytest.mark.asyncio
async def test_a_pod_of_gke_that_is_linked_to_no_service_account(tmp_path: Path) -> None:
    runner = web.ServerRunner(web.Server(gke))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with patient(tmp_path) as here:
            here.environment["GCE_METADATA_HOST"] = f"127.0.0.1:{runner.addresses[0][1]}"
            ran = await here.check()
    finally:
        await runner.cleanup()
    principal = (
        "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/"
        "my-project.svc.id.goog/subject/ns/NS/sa/KSA"
    )
    assert_told(
        ran,
        "token",
        "ambient-unsupported",
        "it said: the Kubernetes account lacks the annotation iam.gke.io/gcp-service-account",
        "kubectl annotate serviceaccount KSA",
        f"roles/iam.serviceAccountOpenIdTokenCreator on ACCOUNT to {principal}",
    )
    assert ran.steps()["credentials"]["details"]["principal"] == principal


@pytest.mark.asyncio
async def test_a_token_that_has_expired_before_it_came(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.google.fail("metadata", Fault.EXPIRED)
        ran = await here.check()
        assert_told(ran, "token", "token-expired", "is a clock wrong?")


# ---- the way there


@pytest.mark.asyncio
@pytest.mark.parametrize("marked", [True, False])
async def test_identity_aware_proxy_before_the_service(tmp_path: Path, marked: bool) -> None:
    fields = {"location": "https://accounts.google.com/o/oauth2/v2/auth?client_id=x&state=secret"}
    if marked:
        fields["x_goog_iap_generated_response"] = "true"
    async with patient(tmp_path, answering(302, **fields), public=True) as here:
        ran = await here.check()
        assert_told(ran, "discovery", "iap", "Identity-Aware Proxy", "run.app URL")
        private = ran.steps()["private"]
        assert (private["outcome"], private["code"], private["commands"]) == ("ok", None, [])
        assert "secret" not in ran.out
        assert "allUsers" not in ran.out


@pytest.mark.asyncio
async def test_a_redirect_to_somewhere_else(tmp_path: Path) -> None:
    async with patient(tmp_path, answering(307, location="https://elsewhere.example/x?y=secret"), public=True) as here:
        ran = await here.check()
        assert_told(ran, "discovery", "redirected", "https://elsewhere.example/x", "Set the url")
        assert ran.steps()["private"]["outcome"] == "skipped"
        assert "secret" not in ran.out


@pytest.mark.asyncio
async def test_a_host_that_does_not_resolve(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        ran = await here.check(url="https://nowhere.invalid")
        assert_told(ran, "dns", "dns-failed", "nowhere.invalid does not resolve", "url of the route")
        assert ran.steps()["token"]["outcome"] == "ok"
        assert ran.steps()["discovery"]["outcome"] == "skipped"


@pytest.mark.asyncio
async def test_a_port_without_a_listener(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with patient(tmp_path) as here:
        ran = await here.check(url=f"https://127.0.0.1:{port}")
        assert_told(ran, "tcp", "tcp-failed", f"port {port}", "Connection refused")


@pytest.mark.asyncio
async def test_a_certificate_of_an_unknown_authority(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        authority = here.environment.pop("SSL_CERT_FILE")
        ran = await here.check()
        assert_told(ran, "tls", "upstream-tls-failed", "does not verify", "--upstream-ca")
        assert authority is not None
        assert (await here.check("--upstream-ca", authority)).code == 0


@pytest.mark.asyncio
async def test_a_port_that_speaks_no_tls(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        ran = await here.check(url=f"https://{here.endpoints.metadata_address}")
        assert_told(ran, "tls", "upstream-tls-failed", "and its port")


@pytest.mark.asyncio
async def test_a_front_that_offers_no_http2(tmp_path: Path) -> None:
    async with patient(tmp_path, alpn=("http/1.1",)) as here:
        ran = await here.check()
        assert_told(ran, "http2", "upstream-not-http2", "HTTP/2")
        assert ran.steps()["http2"]["details"] == {"alpn": "http/1.1"}
        assert ran.steps()["tls"]["outcome"] == "ok"


# ---- the service


@pytest.mark.asyncio
async def test_an_audience_that_the_service_does_not_take(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        ran = await here.check("--gcp-audience", "https://other.example.com")
        assert_told(ran, "discovery", "audience-refused", "'https://other.example.com'", "gcp_audience", here.url)


@pytest.mark.asyncio
async def test_a_custom_domain_without_an_audience(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.cloud_run.url = "https://svc-123456789012.europe-west1.run.app"
        ran = await here.check()
        assert_told(ran, "discovery", "audience-refused", here.url, "custom domain", "set gcp_audience")
        assert (await here.check("--gcp-audience", here.cloud_run.url)).code == 0


@pytest.mark.asyncio
async def test_a_principal_that_may_not_call(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.cloud_run.invokers.clear()
        ran = await here.check()
        who = here.google.metadata_account
        binding = f"--member=serviceAccount:{who} --role=roles/run.invoker"
        assert_told(
            ran,
            "discovery",
            "invoker-missing",
            f"Grant roles/run.invoker on the service to {who}",
            "ingress",
            f"gcloud run services add-iam-policy-binding SERVICE --region=REGION {binding}",
        )


@pytest.mark.parametrize(
    ("status", "body", "code", "telling"),
    [
        (404, "<title>Error 404 (Not Found)!!1</title>", "not-found", ("url of the route", "ingress")),
        (503, PROTOCOL_ERROR, "http2-not-end-to-end", ("services update SERVICE --region=REGION --use-http2",)),
        (502, PROTOCOL_ERROR, "http2-not-end-to-end", ("--use-http2",)),
        (503, "no healthy upstream", "no-instance", ("--max-instances", "gcloud run services logs read")),
        (429, "Rate exceeded.", "no-instance", ("--max-instances",)),
        (504, "upstream request timeout", "timed-out", ("request timeout",)),
        (500, "Internal Server Error", "service-failed", ("logs",)),
        (415, "Unsupported", "versions-refused", ("Restate SDK",)),
        (418, "", "unexpected-status", ("url of the route",)),
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_what_the_front_end_or_the_container_answers(
    tmp_path: Path, status: int, body: str, code: str, telling: tuple[str, ...]
) -> None:
    async with patient(tmp_path, answering(status, body, content_type="text/html")) as here:
        ran = await here.check()
        assert_told(ran, "discovery", code, *telling, str(status))


@pytest.mark.asyncio
async def test_a_service_that_is_no_restate_endpoint(tmp_path: Path) -> None:
    async with patient(tmp_path, echo) as here:
        assert_told(await here.check(), "discovery", "not-restate", "200 with application/json", "url of the route")


@pytest.mark.asyncio
async def test_a_service_that_does_not_answer(tmp_path: Path) -> None:
    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        while scope["type"] == "http" and (await receive())["type"] != "http.disconnect":
            pass

    async with patient(tmp_path, stuck) as here:
        ran = await here.check("--timeout", "0.5")
        assert_told(ran, "discovery", "no-answer", "no answer within 0.5 s", "--timeout")


@pytest.mark.asyncio
async def test_a_clock_that_is_wrong_is_a_warning_until_the_token_is_refused(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.front.ahead_seconds = 600
        warned = await here.check()
        assert (warned.code, warned.faults()) == (0, {"clock": "clock-wrong"})
        assert warned.steps()["clock"]["details"]["skew_seconds"] == pytest.approx(-600, abs=5)
        assert "s behind" in warned.steps()["clock"]["text"]
        here.cloud_run.url = "https://elsewhere.example.com"
        ran = await here.check()
        assert ran.faults() == {"clock": "clock-wrong", "discovery": "clock-wrong"}
        assert ran.code == 1


@pytest.mark.asyncio
async def test_a_public_service_is_a_warning_and_strict_makes_it_count(tmp_path: Path) -> None:
    async with patient(tmp_path, public=True) as here:
        ran = await here.check()
        assert (ran.code, ran.document["outcome"], ran.faults()) == (0, "warning", {"private": "public"})
        assert "--member=allUsers" in ran.steps()["private"]["commands"][0]
        assert ran.steps()["discovery"]["outcome"] == "ok"
        assert (await here.check("--strict")).code == 3


@pytest.mark.asyncio
async def test_a_private_service_on_a_route_that_adds_no_token(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        ran = await here.check("--no-gcp-id-token")
        assert_told(ran, "discovery", "unsigned-refused", "gcp_id_token = false")
        assert ran.document["routes"][0]["audience"] is None


# ---- secrets, settings, and the command `token`


@pytest.mark.asyncio
async def test_no_token_is_shown_even_if_the_service_repeats_it(tmp_path: Path) -> None:
    seen: list[str] = []

    async def parrot(scope: Scope, receive: Receive, send: Send) -> None:
        fields = dict(scope.get("headers", ()))
        token = fields.get(b"x-serverless-authorization", b"").decode()
        seen.append(token)
        await answering(500, f"you said {token}", content_type=f"text/plain; x={token}")(scope, receive, send)

    async with patient(tmp_path, parrot, public=True) as here:
        ran = await here.check()
        assert ran.steps()["discovery"]["details"]["said"] == "you said [not shown]"
        table = await here.run("check", "--route", f"svc={here.url}", "--log-level", "debug")
        written = ran.out + ran.err + table.out + table.err
        signatures = {token.rpartition(".")[2] for token in seen if token}
        assert signatures
        assert not [signature for signature in signatures if signature[:20] in written]
        assert "eyJ" not in written


@pytest.mark.asyncio
async def test_settings_that_cannot_be_used_are_all_told_with_exit_code_2(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        ran = await here.check("--http2-engine", "x", "--connect-timeout", "soon")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("cloudrun-sidecar: 2 problems with the settings\n")
        other = await here.run("check", "svt", "--route", f"svc={here.url}")
        assert (other.code, other.out) == (2, "")
        assert other.err == "cloudrun-sidecar: there is no route /svt; the routes are: /svc; did you mean /svc?\n"


@pytest.mark.asyncio
async def test_token_shows_claims_and_only_raw_gives_the_token(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        shown = await here.run("token", "svc", "--route", f"svc={here.url}")
        assert (shown.code, shown.err) == (0, "")
        document = json.loads(shown.out)
        assert document["header"]["alg"] == "RS256"
        assert document["claims"]["aud"] == here.url
        assert 3500 < document["remaining_seconds"] <= 3600
        assert document["expires_at"].endswith("Z")
        assert "eyJ" not in shown.out
        raw = await here.run("token", "--raw", "svc", "--route", f"svc={here.url}")
        assert (raw.code, raw.err) == (0, "")
        assert re.fullmatch(r"eyJ[\w-]+\.[\w-]+\.[\w-]+\n", raw.out)


@pytest.mark.asyncio
async def test_token_says_why_there_is_none(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        here.environment["NO_GCE_CHECK"] = "true"
        ran = await here.run("token", "svc", "--route", f"svc={here.url}")
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("cloudrun-sidecar: no Google credentials: ")
        unsigned = await here.run("token", "svc", "--route", f"svc={here.url}", "--no-gcp-id-token")
        assert (unsigned.code, unsigned.out) == (2, "")


async def in_a_terminal(here: Patient, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run the command with a terminal for both outputs; return its exit code and what the terminal got."""
    near, far = os.openpty()
    try:
        here.environment.update({"TERM": "xterm", "LC_ALL": "C.UTF-8", **variables})
        ran = await here.run(*arguments, terminal=far)
        os.close(far)
        far = -1
        written = bytearray()
        # Linux ends a terminal that nobody holds any more with EIO.
        with contextlib.suppress(OSError):
            while chunk := os.read(near, 65_536):
                written += chunk
        return ran.code, written.decode()
    finally:
        os.close(near)
        if far >= 0:
            os.close(far)


@pytest.mark.asyncio
async def test_a_terminal_gets_progress_that_goes_away_and_colours_that_can_be_refused(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        route = ("--route", f"svc={here.url}")
        code, shown = await in_a_terminal(here, "check", *route)
        assert code == 0
        assert "\r\x1b[Kchecking /svc: credentials" in shown
        assert "checking /svc: discovery\r\x1b[K\x1b[1m/svc\x1b[0m  " in shown
        assert "\x1b[32m✔\x1b[0m credentials" in shown
        code, shown = await in_a_terminal(here, "check", *route, NO_COLOR="1")
        assert "  ✔ credentials  " in shown
        assert "\x1b[32m" not in shown
        code, shown = await in_a_terminal(here, "check", *route, TERM="dumb", PYTHONIOENCODING="ascii")
        assert "  ok   credentials  " in shown
        assert shown.isascii()
        assert "\x1b" not in shown


@pytest.mark.asyncio
async def test_a_token_on_a_terminal_comes_with_a_warning(tmp_path: Path) -> None:
    async with patient(tmp_path) as here:
        code, shown = await in_a_terminal(here, "token", "--raw", "svc", "--route", f"svc={here.url}")
        note, token = shown.splitlines()
        assert code == 0
        assert note == f"This is a secret: for 60 min it opens {here.url} to whoever has it."
        assert token.count(".") == 2

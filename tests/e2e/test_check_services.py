"""The real command `check` against services and networks that are set up wrong: the diagnosis, and its remedy."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from proxy.emulator import echo
from proxy.emulator.cloud_run import Receive, Scope, Send
from tests.e2e.diagnoses import assert_diagnosed
from tests.support.emulated_setup import answering, emulated_setup
from tests.support.names import name_server

ENVOY_PROTOCOL_ERROR = "upstream connect error or disconnect/reset before headers. reset reason: protocol error"


# ---- the way there


@pytest.mark.asyncio
@pytest.mark.parametrize("marked", [True, False])
async def test_identity_aware_proxy_before_the_service_is_diagnosed(tmp_path: Path, marked: bool) -> None:
    fields = {"location": "https://accounts.google.com/o/oauth2/v2/auth?client_id=x&state=secret"}
    if marked:
        fields["x_goog_iap_generated_response"] = "true"
    async with emulated_setup(tmp_path, answering(302, **fields), public=True) as here:
        ran = await here.check()
        assert_diagnosed(ran, "discovery", "iap", "Identity-Aware Proxy", "run.app URL")
        private = ran.steps()["private"]
        assert (private["outcome"], private["code"], private["commands"]) == ("ok", None, [])
        assert "secret" not in ran.out
        assert "allUsers" not in ran.out


@pytest.mark.asyncio
async def test_a_redirect_to_another_site_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(
        tmp_path, answering(307, location="https://elsewhere.example/x?y=secret"), public=True
    ) as here:
        ran = await here.check()
        assert_diagnosed(ran, "discovery", "redirected", "https://elsewhere.example/x", "Set the url")
        assert ran.steps()["private"]["outcome"] == "skipped"
        assert "secret" not in ran.out


@pytest.mark.asyncio
async def test_a_host_that_does_not_resolve_is_diagnosed(tmp_path: Path) -> None:
    async with name_server() as names, emulated_setup(tmp_path) as here:
        here.under.extend(names.under(tmp_path))
        ran = await here.check(url="https://nowhere.invalid")
        assert_diagnosed(ran, "dns", "dns-failed", "nowhere.invalid does not resolve", "url of the route")
        assert ran.steps()["token"]["outcome"] == "ok"
        assert ran.steps()["discovery"]["outcome"] == "skipped"


@pytest.mark.asyncio
async def test_a_port_without_a_listener_is_diagnosed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with emulated_setup(tmp_path) as here:
        ran = await here.check(url=f"https://127.0.0.1:{port}")
        assert_diagnosed(ran, "tcp", "tcp-failed", f"port {port}", "Connection refused")


@pytest.mark.asyncio
async def test_a_certificate_of_an_unknown_authority_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        authority = here.environment.pop("SSL_CERT_FILE")
        ran = await here.check()
        assert_diagnosed(ran, "tls", "upstream-tls-failed", "does not verify", "--upstream-ca")
        assert authority is not None
        assert (await here.check("--upstream-ca", authority)).code == 0


@pytest.mark.asyncio
async def test_a_port_without_tls_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        ran = await here.check(url=f"https://{here.endpoints.metadata_address}")
        assert_diagnosed(ran, "tls", "upstream-tls-failed", "and its port")


@pytest.mark.asyncio
async def test_a_front_end_without_http2_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path, alpn=("http/1.1",)) as here:
        ran = await here.check()
        assert_diagnosed(ran, "http2", "upstream-not-http2", "HTTP/2")
        assert ran.steps()["http2"]["details"] == {"alpn": "http/1.1"}
        assert ran.steps()["tls"]["outcome"] == "ok"


# ---- the service


@pytest.mark.asyncio
async def test_an_audience_that_the_service_refuses_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        ran = await here.check("--gcp-audience", "https://other.example.com")
        assert_diagnosed(ran, "discovery", "audience-refused", "'https://other.example.com'", "gcp_audience", here.url)


@pytest.mark.asyncio
async def test_a_custom_domain_without_an_audience_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.cloud_run.url = "https://svc-123456789012.europe-west1.run.app"
        ran = await here.check()
        assert_diagnosed(ran, "discovery", "audience-refused", here.url, "custom domain", "set gcp_audience")
        assert (await here.check("--gcp-audience", here.cloud_run.url)).code == 0


@pytest.mark.asyncio
async def test_a_principal_without_the_invoker_role_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.cloud_run.invokers.clear()
        ran = await here.check()
        who = here.google.metadata_account
        binding = f"--member=serviceAccount:{who} --role=roles/run.invoker"
        assert_diagnosed(
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
        (503, ENVOY_PROTOCOL_ERROR, "http2-not-end-to-end", ("services update SERVICE --region=REGION --use-http2",)),
        (502, ENVOY_PROTOCOL_ERROR, "http2-not-end-to-end", ("--use-http2",)),
        (503, "no healthy upstream", "no-instance", ("--max-instances", "gcloud run services logs read")),
        (429, "Rate exceeded.", "no-instance", ("--max-instances",)),
        (504, "upstream request timeout", "timed-out", ("request timeout",)),
        (500, "Internal Server Error", "service-failed", ("logs",)),
        (415, "Unsupported", "versions-refused", ("Restate SDK",)),
        (418, "", "unexpected-status", ("url of the route",)),
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_error_responses_of_the_front_end_and_of_the_container_are_diagnosed(
    tmp_path: Path, status: int, body: str, code: str, telling: tuple[str, ...]
) -> None:
    async with emulated_setup(tmp_path, answering(status, body, content_type="text/html")) as here:
        ran = await here.check()
        assert_diagnosed(ran, "discovery", code, *telling, str(status))


@pytest.mark.asyncio
async def test_a_service_that_is_no_restate_endpoint_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path, echo) as here:
        assert_diagnosed(
            await here.check(), "discovery", "not-restate", "200 with application/json", "url of the route"
        )


@pytest.mark.asyncio
async def test_a_service_that_does_not_answer_is_diagnosed(tmp_path: Path) -> None:
    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        while scope["type"] == "http" and (await receive())["type"] != "http.disconnect":
            pass

    async with emulated_setup(tmp_path, stuck) as here:
        ran = await here.check("--timeout", "0.5")
        assert_diagnosed(ran, "discovery", "no-answer", "no answer within 0.5 s", "--timeout")


@pytest.mark.asyncio
async def test_a_clock_that_is_wrong_is_a_warning_until_the_token_is_refused(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
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
async def test_a_public_service_is_a_warning_and_a_failure_with_strict(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path, public=True) as here:
        ran = await here.check()
        assert (ran.code, ran.document["outcome"], ran.faults()) == (0, "warning", {"private": "public"})
        assert "--member=allUsers" in ran.steps()["private"]["commands"][0]
        assert ran.steps()["discovery"]["outcome"] == "ok"
        assert (await here.check("--strict")).code == 3


@pytest.mark.asyncio
async def test_a_private_service_on_a_route_without_tokens_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        ran = await here.check("--no-gcp-id-token")
        assert_diagnosed(ran, "discovery", "unsigned-refused", "gcp_id_token = false")
        assert ran.document["routes"][0]["audience"] is None

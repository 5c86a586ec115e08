"""The real command `check`: routes that work, credentials that do not, and settings that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from proxy.emulator import Fault, Google, Pod
from proxy.emulator.cloud_run import Receive, Scope, Send
from tests.e2e.diagnoses import FORM, NAMES, assert_diagnosed
from tests.support.emulated_setup import answering, emulated_setup
from tests.support.pasted import PASTED, told_of

TARGET = "invoker@samples.iam.gserviceaccount.com"


# ---- nothing is wrong


@pytest.mark.asyncio
async def test_a_working_set_up_passes_every_step(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
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
async def test_all_routes_are_reported_in_order_unless_routes_are_named(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
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
async def test_missing_credentials_are_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.environment["NO_GCE_CHECK"] = "true"
        ran = await here.check()
        assert_diagnosed(ran, "credentials", "credentials-not-found", "Set GOOGLE_APPLICATION_CREDENTIALS")
        assert ran.steps()["token"]["outcome"] == "skipped"
        assert ran.steps()["private"]["outcome"] == "ok"


@pytest.mark.asyncio
async def test_a_missing_credential_file_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.environment["GOOGLE_APPLICATION_CREDENTIALS"] = "/nonexistent/key.json"
        ran = await here.check()
        assert_diagnosed(ran, "credentials", "credentials-invalid", "'/nonexistent/key.json'", "No such file")


@pytest.mark.asyncio
@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
async def test_a_credential_in_place_of_its_path_is_diagnosed_and_not_quoted(tmp_path: Path, pasted: str) -> None:
    async with emulated_setup(tmp_path) as here:
        here.environment["GOOGLE_APPLICATION_CREDENTIALS"] = pasted
        ran = await here.check()
        assert_diagnosed(ran, "credentials", "credentials-invalid", "GOOGLE_APPLICATION_CREDENTIALS must be the path")
        shown = await here.run("check", "--upstream", here.url)
        assert shown.code == 1
        assert told_of(pasted, ran.out + shown.out + shown.err) == []


@pytest.mark.asyncio
async def test_user_credentials_without_impersonation_are_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        path = here.with_key(here.google.user_file("ada@example.com"))
        ran = await here.check()
        assert_diagnosed(ran, "token", "ambient-unsupported", str(path), "gcp_impersonate_service_account", "key file")
        assert ran.steps()["credentials"]["details"]["named_by"] == "GOOGLE_APPLICATION_CREDENTIALS"


@pytest.mark.asyncio
async def test_a_deleted_key_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        path = here.with_key(Google().key_file("gone@samples.iam.gserviceaccount.com", here.endpoints.token_uri))
        ran = await here.check()
        assert_diagnosed(ran, "token", "credentials-rejected", str(path), "create a new key")
        assert "gone@samples.iam.gserviceaccount.com" in ran.steps()["credentials"]["text"]


@pytest.mark.asyncio
async def test_a_missing_grant_of_impersonation_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path, api_hosts=True) as here:
        here.google.add_account(TARGET)
        caller = here.google.metadata_account
        ran = await here.check("--gcp-impersonate-service-account", TARGET)
        assert_diagnosed(
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
async def test_a_hanging_metadata_server_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.google.fail("metadata", Fault.HANG)
        ran = await here.check("--mint-timeout", "0.5")
        assert_diagnosed(ran, "credentials", "token-timeout", "0.5 s")


@pytest.mark.asyncio
async def test_a_gke_pod_without_annotation_or_binding_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.google.add_account(TARGET)
        here.google.pod = Pod(namespace="prod", name="restate")
        ran = await here.check()
        here.google.pod = Pod(namespace="prod", name="restate", annotation=TARGET)
        without_binding = await here.check()
    principal = (
        f"principal://iam.googleapis.com/projects/{here.google.project_number('emulated')}/locations/global/"
        "workloadIdentityPools/emulated.svc.id.goog/subject/ns/NS/sa/KSA"
    )
    assert_diagnosed(
        ran,
        "token",
        "ambient-unsupported",
        "it said: The Kubernetes service account prod/restate is linked to no Google service account",
        "kubectl annotate serviceaccount KSA",
        f"roles/iam.serviceAccountOpenIdTokenCreator on ACCOUNT to {principal}",
    )
    assert ran.steps()["credentials"]["details"]["principal"] == principal
    assert_diagnosed(
        without_binding,
        "token",
        "impersonation-denied",
        f"grant roles/iam.workloadIdentityUser on {TARGET} to serviceAccount:PROJECT.svc.id.goog[NS/KSA]",
    )


@pytest.mark.asyncio
async def test_a_token_that_is_already_expired_is_diagnosed(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.google.fail("metadata", Fault.EXPIRED)
        ran = await here.check()
        assert_diagnosed(ran, "token", "token-expired", "Correct the clock of the server")


# ---- secrets, settings, and terminals


@pytest.mark.asyncio
async def test_no_token_is_shown_even_if_the_service_repeats_it(tmp_path: Path) -> None:
    seen: list[str] = []

    async def parrot(scope: Scope, receive: Receive, send: Send) -> None:
        fields = dict(scope.get("headers", ()))
        token = fields.get(b"x-serverless-authorization", b"").decode()
        seen.append(token)
        await answering(500, f"you said {token}", content_type=f"text/plain; x={token}")(scope, receive, send)

    async with emulated_setup(tmp_path, parrot, public=True) as here:
        ran = await here.check()
        assert ran.steps()["discovery"]["details"]["said"] == "you said [not shown]"
        table = await here.run("check", "--route", f"svc={here.url}", "--log-level", "debug")
        written = ran.out + ran.err + table.out + table.err
        signatures = {token.rpartition(".")[2] for token in seen if token}
        assert signatures
        assert not [signature for signature in signatures if signature[:20] in written]
        assert "eyJ" not in written


@pytest.mark.asyncio
async def test_all_problems_with_the_settings_are_reported_with_exit_code_2(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        ran = await here.check("--http2-engine", "x", "--connect-timeout", "soon")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("cloudrun-sidecar: 2 problems with the settings\n")
        other = await here.run("check", "svt", "--route", f"svc={here.url}")
        assert (other.code, other.out) == (2, "")
        assert other.err == "cloudrun-sidecar: there is no route /svt; the routes are: /svc; did you mean /svc?\n"


@pytest.mark.asyncio
async def test_a_terminal_shows_progress_until_a_result_and_colours_unless_refused(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        route = ("--route", f"svc={here.url}")
        code, shown = await here.run_in_terminal("check", *route)
        assert code == 0
        assert "\r\x1b[Kchecking /svc: credentials" in shown
        assert "checking /svc: discovery\r\x1b[K\x1b[1m/svc\x1b[0m  " in shown
        assert "\x1b[32m✔\x1b[0m credentials" in shown
        code, shown = await here.run_in_terminal("check", *route, NO_COLOR="1")
        assert "  ✔ credentials  " in shown
        assert "\x1b[32m" not in shown
        code, shown = await here.run_in_terminal("check", *route, TERM="dumb", PYTHONIOENCODING="ascii")
        assert "  ok   credentials  " in shown
        assert shown.isascii()
        assert "\x1b" not in shown

"""`register` and `check` with the real restate-server: what is registered, changed, refused, and named as left over."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import restate
from aiohttp import web

from proxy.emulator.cloud_run import Application
from tests.support.emulated_setup import CommandResult
from tests.support.open_world import (
    AUDIENCE,
    BROKEN,
    CUSTOM,
    ID_TOKEN,
    IMPERSONATE,
    ONE,
    OTHER,
    OWNER,
    PUBLIC,
    SAMPLES,
    TWO,
    World,
    world,
)

ALL = {"Counter", "Echo", "Greeter", "Sleeper", "Trouble", "Worker"}


async def register(
    here: World, *words: str, admin: str | None = None, env: dict[str, str] | None = None
) -> CommandResult:
    return await here.run("register", *words, "--restate-admin", admin or here.restate.admin_url, env=env)


def plain_command(ran: CommandResult) -> str:
    """Return the command of Restate's CLI that the output ends with."""
    told = re.search(r"\nThe same with Restate's CLI:\n  (.+)\n\Z", ran.out)
    assert told, ran.out + ran.err
    return told[1]


def counter_as_a_service() -> Application:
    """Return services in which one of the samples is of another type, and the others are gone."""
    counter = restate.Service("Counter")

    @counter.handler()
    async def count(ctx: restate.Context, amount: int) -> int:
        return amount

    return cast(Application, restate.app(services=[counter]))


def counter_of_words() -> Application:
    """Return a service in which the handler of one of the samples takes something else."""
    counter = restate.VirtualObject("Counter")

    @counter.handler()
    async def add(ctx: restate.ObjectContext, amount: str) -> int:
        return len(amount)

    return cast(Application, restate.app(services=[counter]))


def named(config: Path, name: str, impersonate: str) -> None:
    """Add a named route to the samples."""
    lines = [f"[routes.{name}]", f'url = "https://{SAMPLES}"', f'gcp_impersonate_service_account = "{impersonate}"']
    config.write_text(config.read_text().replace("        ", "") + "\n".join(lines) + "\n")


@pytest.mark.asyncio
async def test_a_service_is_registered_by_path_and_overwritten_with_force(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        tried = await register(here, f"https://{SAMPLES}", "--gcp-impersonate-service-account", ONE, "--dry-run")
        assert (tried.code, tried.err) == (0, "")
        assert "Nothing was changed (--dry-run)." in tried.out
        assert "\nRestate's CLI has no --dry-run; this registers:\n  " in tried.out
        assert await here.deployments() == []

        done = await register(here, f"https://{SAMPLES}", "--gcp-impersonate-service-account", ONE, "--yes")
        assert (done.code, done.err) == (0, "")
        assert "Services that will be added:\n" in done.out
        assert "  Counter  virtual object\n      add  takes JSON integer, returns JSON integer\n" in done.out
        assert re.search(r"^Registered as dp_\w+: Counter \(revision 1\), ", done.out, re.MULTILINE)
        (deployment,) = await here.deployments()
        assert deployment["uri"] == f"{here.sidecar.url}/{SAMPLES}"
        assert deployment["additional_headers"] == {IMPERSONATE: ONE}
        assert {service["name"] for service in deployment["services"]} == ALL
        assert (await here.greeted()).claims["email"] == ONE

        again = await register(here, SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes")
        assert (again.code, again.err) == (0, "")
        assert "and calls it in the same way. Nothing was changed" in again.out

        other = await register(here, SAMPLES, "--gcp-impersonate-service-account", TWO, "--yes")
        assert other.code == 2
        assert f"Nothing was changed; with --force {IMPERSONATE} is changed\n" in other.err
        assert await here.deployments() == [deployment]

        words = ("--gcp-impersonate-service-account", TWO, "--gcp-audience", CUSTOM)
        forced = await register(here, f"{here.sidecar.url}/{SAMPLES}", *words, "--force", "--yes")
        assert forced.code == 0
        assert f"  {AUDIENCE} is added\n  {IMPERSONATE} is changed\n" in forced.out
        assert "Services that will be updated:\n" in forced.out
        assert "Greeter  service, revision 1 → 2\n" in forced.out
        seen = await here.greeted()
        assert (seen.claims["email"], seen.claims["aud"]) == (TWO, CUSTOM)


@pytest.mark.asyncio
async def test_a_service_is_registered_by_authority(tmp_path: Path) -> None:
    async with world(tmp_path, by_authority=True) as here:
        done = await register(here, f"http://{SAMPLES}", "--gcp-impersonate-service-account", ONE, "--yes")
        assert (done.code, done.err) == (0, "")
        assert (await here.greeted()).claims["email"] == ONE
        (deployment,) = await here.deployments()
        assert deployment["uri"] == f"http://{SAMPLES}/"


@pytest.mark.asyncio
async def test_a_named_route_is_registered_by_its_name(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        named(here.config, "greeter", ONE)
        await here.sidecar.logged("settings")
        done = await register(here, "greeter", "--yes", "--extra-header", "x-application=kept")
        assert (done.code, done.err) == (0, "")
        (deployment,) = await here.deployments()
        assert deployment["uri"] == f"{here.sidecar.url}/greeter"
        seen = await here.greeted()
        assert (seen.claims["email"], seen.fields["x-application"]) == (ONE, "kept")
        refused = await register(here, "greeter", "--yes", "--gcp-audience", CUSTOM)
        assert refused.code == 2
        assert "the authentication of the route /greeter stands in the settings" in refused.err


@pytest.mark.asyncio
@pytest.mark.parametrize("by_authority", [False, True], ids=["by-path", "by-authority"])
async def test_the_printed_command_of_restates_cli_has_the_same_effect(tmp_path: Path, by_authority: bool) -> None:
    async with world(tmp_path, by_authority=by_authority) as here:
        words = ["--gcp-impersonate-service-account", ONE, "--gcp-audience", CUSTOM]
        words += ["--extra-header", "x-team=payments", "--extra-header", "authorization=Bearer of-the-application"]
        done = await register(here, here.url(SAMPLES), *words, "--yes")
        assert (done.code, done.err) == (0, "")
        assert "of-the-application" not in done.out
        (ours,) = await here.deployments()
        await here.restate.forget()
        without = await here.shell(plain_command(done))
        assert without.code != 0
        assert "AUTHORIZATION" in without.err
        ran = await here.shell(plain_command(done), {"AUTHORIZATION": "Bearer of-the-application"})
        assert ran.code == 0, ran.out + ran.err
        (theirs,) = await here.deployments()
        assert {**theirs, "id": ours["id"]} == ours  # Each registration gets an identifier of its own.
        seen = await here.greeted()
        assert (seen.claims["email"], seen.claims["aud"]) == (ONE, CUSTOM)


@pytest.mark.asyncio
async def test_a_deployment_that_does_not_work_or_is_not_allowed_is_not_registered(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        denied = await register(here, SAMPLES, "--gcp-impersonate-service-account", BROKEN, "--yes")
        assert denied.code == 1
        assert "roles/iam.serviceAccountOpenIdTokenCreator" in denied.out
        assert denied.err == "cloudrun-sidecar: the deployment does not work yet, so it was not registered\n"
        bare = await register(here, SAMPLES, "--no-gcp-id-token", "--yes")
        assert (bare.code, "no token" in bare.out or "403" in bare.out) == (1, True)
        for words, reason in (
            ((SAMPLES, "--gcp-impersonate-service-account", OWNER), f"{OWNER} is not in the list accounts"),
            ((SAMPLES, "--gcp-audience", f"https://{OTHER}"), "is not in the list audiences"),
            ((SAMPLES, "--extra-header", "x-cloudrun-sidecar-gcp-audiense=x"), "is not a header of the sidecar"),
            (("https://evil-999999999999.europe-west1.run.app",), "is not in the list hosts"),
            (("http://127.0.0.1:1/x",), "--sidecar says where"),
        ):
            refused = await register(here, *words, "--yes")
            assert (refused.code, refused.out) == (2, "")
            assert reason in refused.err
            assert refused.err.startswith("cloudrun-sidecar: ")
        assert await here.deployments() == []
        public = await register(here, f"https://{PUBLIC}", "--no-gcp-id-token", "--yes")
        assert (public.code, public.err) == (0, "")
        (deployment,) = await here.deployments()
        assert deployment["additional_headers"] == {ID_TOKEN: "false"}


@pytest.mark.asyncio
async def test_failures_of_restate_are_reported_with_a_remedy(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        words = (SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes")
        down = await register(here, *words, admin="http://127.0.0.1:1")
        assert down.code == 1
        assert "cannot be reached at http://127.0.0.1:1" in down.err
        lost = await register(here, *words, "--sidecar", "http://127.0.0.1:1")
        assert lost.code == 1
        assert "Restate cannot discover the deployment, nothing was changed" in lost.err
        assert "Does the sidecar run there? --sidecar says where Restate reaches it" in lost.err
        not_restate = await register(here, *words, admin=here.sidecar.url)
        assert not_restate.code == 2
        assert "is not Restate's admin API" in not_restate.err
        unasked = await register(here, *words[:-1])
        assert unasked.code == 2
        assert "there is no terminal; add --yes or --dry-run" in unasked.err
        assert await here.deployments() == []


@asynccontextmanager
async def guarded(admin_url: str, token: str, here: World) -> AsyncIterator[str]:
    """Run a gateway in front of the admin API that requires a token; yields its URL."""

    async def passed(request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {token}":
            return web.Response(status=401, text="who are you?")
        url, body = f"{admin_url}{request.path_qs}", await request.read()
        headers = {"content-type": "application/json"} if body else {}
        async with here.restate.http.request(request.method, url, data=body or None, headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", passed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.asyncio
async def test_the_token_of_the_admin_api_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    token = "s3cret-token-of-the-admin-api"
    async with world(tmp_path) as here, guarded(here.restate.admin_url, token, here) as admin:
        words = (SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes")
        without = await register(here, *words, admin=admin)
        assert (without.code, "requires a token (401)" in without.err) == (2, True)
        wrong = await register(here, *words, admin=admin, env={"RESTATE_AUTH_TOKEN": "wr0ng"})
        assert (wrong.code, "refuses the token (401)" in wrong.err) == (2, True)
        by_variable = await register(here, *words, "--dry-run", admin=admin, env={"RESTATE_AUTH_TOKEN": token})
        assert by_variable.code == 0
        file = tmp_path / "the token"
        file.write_text(f"{token}\n")
        by_file = await register(here, *words, "--restate-token-file", str(file), admin=admin)
        assert by_file.code == 0
        assert token not in "".join(ran.out + ran.err for ran in (without, wrong, by_variable, by_file))
        await here.restate.forget()
        ran = await here.shell(plain_command(by_file))
        assert ran.code == 0, ran.out + ran.err
        assert len(await here.deployments()) == 1


@pytest.mark.asyncio
async def test_an_incompatible_change_needs_the_flag_breaking(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        assert (await register(here, SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes")).code == 0
        here.container.app = counter_as_a_service()
        words = (f"{SAMPLES}/other", "--gcp-impersonate-service-account", ONE, "--yes")
        refused = await register(here, *words)
        assert refused.code == 2
        assert "Restate refuses this change" in refused.err
        assert "Add --breaking" in refused.err
        assert len(await here.deployments()) == 1
        allowed = await register(here, *words, "--breaking")
        assert (allowed.code, allowed.err) == (0, "")
        assert "Counter  virtual object → service, revision 1 → 2, until now at" in allowed.out
        assert "    - add " in allowed.out
        assert "    + count " in allowed.out
        assert len(await here.deployments()) == 2


@pytest.mark.asyncio
async def test_services_that_an_overwritten_deployment_loses_are_listed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        assert (await register(here, SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes")).code == 0
        here.container.app = counter_as_a_service()
        done = await register(here, SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes", "--force")
        assert done.code == 0
        removed = done.out.partition("Services that will be removed:\n")[2].partition("Registered")[0]
        assert set(removed.split()) == ALL - {"Counter"}


@pytest.mark.asyncio
async def test_of_a_changed_handler_it_is_said_what_changes(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        assert (await register(here, SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes")).code == 0
        here.container.app = counter_of_words()
        done = await register(here, SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes", "--force")
        assert done.code == 0
        assert "\n    ~ add  takes JSON string (until now JSON integer), returns JSON integer\n" in done.out


@pytest.mark.asyncio
async def test_the_version_of_http_is_changed_by_force(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        words = (SAMPLES, "--gcp-impersonate-service-account", ONE, "--yes")
        assert (await register(here, *words, "--use-http1.1")).code == 0
        (deployment,) = await here.deployments()
        assert deployment["http_version"] == "HTTP/1.1"
        assert (await here.greeted()).claims["email"] == ONE
        refused = await register(here, *words)
        assert (refused.code, "with --force HTTP/1.1 is no longer used" in refused.err) == (2, True)
        assert (await register(here, *words, "--force")).code == 0
        (deployment,) = await here.deployments()
        assert deployment["http_version"] == "HTTP/2.0"
        by_authority = await register(here, f"http://{SAMPLES}", "--use-http1.1", "--yes")
        assert (by_authority.code, "needs the host in the path" in by_authority.err) == (2, True)


@pytest.mark.asyncio
async def test_a_confirmation_on_a_terminal_can_be_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        words = ("register", SAMPLES, "--gcp-impersonate-service-account", ONE)
        admin = ("--restate-admin", here.restate.admin_url)
        said = await here.on_terminal("n\n", *words, *admin)
        assert "Register this deployment? [y/N]" in said
        assert "nothing was changed" in said
        assert await here.deployments() == []
        said = await here.on_terminal("y\n", *words, *admin)
        assert "Registered as dp_" in said
        assert len(await here.deployments()) == 1


@pytest.mark.asyncio
async def test_check_takes_a_host_with_its_headers_as_a_route(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        well = await here.run("check", SAMPLES, "--gcp-impersonate-service-account", ONE)
        assert (well.code, well.err) == (0, "")
        assert well.out.startswith(f"/{SAMPLES}  https://{SAMPLES}\n  ✔ credentials")
        assert f"as {ONE}" in " ".join(well.out.split())
        headers = ("--extra-header", f"{IMPERSONATE}={BROKEN}")
        denied = await here.run("check", "--json", SAMPLES, *headers)
        assert (denied.code, denied.err) == (1, "")
        assert denied.document["routes"][0]["route"] == SAMPLES
        assert denied.faults(SAMPLES) == {"token": "impersonation-denied"}
        for words, reason in (
            ((SAMPLES, "--gcp-impersonate-service-account", OWNER), "is not in the list accounts"),
            (("evil.run.app",), "'evil.run.app' is not in the list hosts of [deployments]"),
            ((), "name a host that the list allows"),
            (("greeter",), "there is no named route, only [deployments]"),
        ):
            refused = await here.run("check", *words)
            assert (refused.code, refused.out) == (2, "")
            assert reason in refused.err


@pytest.mark.asyncio
@pytest.mark.parametrize("by_authority", [False, True], ids=["by-path", "by-authority"])
async def test_check_names_the_deployments_that_restate_still_has(tmp_path: Path, by_authority: bool) -> None:
    async with world(tmp_path, by_authority=by_authority) as here:
        named(here.config, "greeter", ONE)
        await here.sidecar.logged("settings reloaded")
        for words in ((here.url(SAMPLES), "--gcp-impersonate-service-account", TWO), ("greeter", "--force")):
            assert (await register(here, *words, "--yes")).code == 0
        words = ("check", "--restate-admin", here.restate.admin_url)
        well = await here.run(*words)
        assert (well.code, well.err) == (0, "")
        assert well.out.count("✔ dp_") == 2

        settings = here.config.read_text().partition("[routes.greeter]")[0]
        here.config.write_text(settings.replace(f'"{TWO}", ', ""))
        left = await here.run(*words, "--json")
        assert left.code == 1
        assert left.document["routes"] == []
        told = {one["url"]: one["text"] for one in left.document["restate"]["deployments"]}
        assert f"{TWO} is not in the list accounts" in told.pop(here.url(SAMPLES) + "/" * by_authority)
        assert "no route for this path" in told.pop(f"{here.sidecar.url}/greeter")
        assert told == {}
        shown = await here.run(*words)
        assert (shown.code, shown.out.count("✘ dp_")) == (1, 2)
        assert "$ restate deployments remove dp_" in shown.out

        down = await here.run("check", SAMPLES, "--restate-admin", "http://127.0.0.1:1")
        assert "✘ asked  Restate's admin API cannot be reached" in down.out

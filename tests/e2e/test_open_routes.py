"""Deployments own their authentication: Restate's CLI registers, changes and removes it through the sidecar."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.emulator import Verdict
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
    world,
)

by_path_and_by_authority = pytest.mark.parametrize("by_authority", [False, True], ids=["by-path", "by-authority"])


@pytest.mark.asyncio
@by_path_and_by_authority
async def test_a_registration_adds_changes_and_removes_authentication(tmp_path: Path, by_authority: bool) -> None:
    async with world(tmp_path, by_authority=by_authority) as here:
        await here.register(f"{IMPERSONATE}={ONE}", "x-application=kept")
        seen = await here.greeted()
        assert (seen.claims["email"], seen.claims["aud"]) == (ONE, f"https://{SAMPLES}")

        await here.register(f"{IMPERSONATE}={TWO}", f"{AUDIENCE}={CUSTOM}", "x-application=kept")
        seen = await here.greeted()
        assert (seen.claims["email"], seen.claims["aud"]) == (TWO, CUSTOM)

        # IAM does not let the sidecar impersonate this one: the deployment that works stays.
        said = await here.register(f"{IMPERSONATE}={BROKEN}", fails=True)
        assert "roles/iam.serviceAccountOpenIdTokenCreator" in said
        assert BROKEN in said
        assert (await here.greeted()).claims["email"] == TWO

        # Without a token the front end refuses the discovery.
        assert "403" in await here.register(f"{ID_TOKEN}=false", fails=True)
        assert (await here.greeted()).claims["email"] == TWO

        assert {seen.fields["x-application"] for seen in here.container.seen} == {"kept"}

        # A public service needs none.
        await here.register(f"{ID_TOKEN}=false", host=PUBLIC)
        assert await here.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")
        assert {seen.tokens for seen in here.public.seen} == {0}
        for seen in (*here.container.seen, *here.public.seen):
            assert not [name for name in seen.fields if name.startswith("x-cloudrun-sidecar")]


@pytest.mark.asyncio
@by_path_and_by_authority
async def test_a_registration_that_the_lists_do_not_allow_is_refused_and_others_continue(
    tmp_path: Path, by_authority: bool
) -> None:
    async with world(tmp_path, by_authority=by_authority) as here:
        await here.register(f"{IMPERSONATE}={ONE}")
        for headers, host, reason in (
            ((f"{IMPERSONATE}={OWNER}",), SAMPLES, f"{OWNER} is not in the list accounts of [deployments]"),
            ((f"{AUDIENCE}=https://{OTHER}",), SAMPLES, "is not in the list audiences of [deployments]"),
            ((f"{AUDIENCE}=https://{SAMPLES}",), OTHER, "is not in the list audiences of [deployments]"),
            ((f"{AUDIENCE}={CUSTOM}",), OTHER, "is not in the list audiences of [deployments]"),
            (("x-cloudrun-sidecar-gcp-audiense=x",), SAMPLES, "is not a header of the sidecar"),
            ((), "evil-999999999999.europe-west1.run.app", "is not in the list hosts of [deployments]"),
            ((), "samples.europe-west1.run.app", "is not in the list hosts of [deployments]"),
        ):
            assert reason in await here.register(*headers, host=host, fails=True)
        several = await here.register(f"{IMPERSONATE}={OWNER}", f"{AUDIENCE}=https://{OTHER}", fails=True)
        assert OWNER in several
        assert OTHER in several
        assert (await here.greeted()).claims["email"] == ONE
        assert {(mint.email, mint.audience) for mint in here.google.mints} == {(ONE, f"https://{SAMPLES}")}
        assert here.other.streams == []
        assert here.cloud_run.verdicts.keys() == {Verdict.ACCEPTED}


@pytest.mark.asyncio
async def test_a_patch_of_the_deployment_may_change_its_headers(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register(f"{IMPERSONATE}={ONE}")
        (deployment,) = await here.restate.query("SELECT id FROM sys_deployment")

        async def change(account: str) -> tuple[int, str]:
            url = f"{here.restate.admin_url}/deployments/{deployment['id']}"
            wish = {"additional_headers": {IMPERSONATE: account}}
            async with here.restate.http.patch(url, json=wish) as response:
                return response.status, await response.text()

        status, said = await change(OWNER)
        assert status == 500
        assert "is not in the list accounts of [deployments]" in said
        assert (await here.greeted()).claims["email"] == ONE
        assert (await change(TWO))[0] == 200
        assert (await here.greeted()).claims["email"] == TWO


@pytest.mark.asyncio
async def test_the_path_names_the_host_over_http_1_1_and_the_authority_does_not(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        registered = await here.restate.register(here.url(SAMPLES), headers={IMPERSONATE: ONE}, use_http_11=True)
        assert registered.status == 201, registered.body
        assert (await here.greeted()).claims["email"] == ONE
        arrived = len(here.cloud_run.streams)
        http = here.restate.http
        async with http.get(f"{here.sidecar.url}/discover", headers={"host": SAMPLES}) as response:
            assert (response.status, response.headers["x-cloudrun-sidecar-error"]) == (403, "browser-refused")
        async with http.get(f"http://{SAMPLES}/discover", proxy=here.sidecar.url) as response:
            assert (response.status, response.headers["x-cloudrun-sidecar-error"]) == (400, "bad-request")
        assert len(here.cloud_run.streams) == arrived

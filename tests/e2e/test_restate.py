"""A real restate-server and the real sidecar, in front of a Cloud Run service that takes nothing but a valid token."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from proxy.emulator import Fault, Verdict
from proxy.emulator.model import Endpoint
from tests.support.world import AUTHORIZATION, ROUTE, TARGET, Identity, World, world

INVOCATIONS = 1_000
INVOCATIONS_OF_OTHERS = 200
"""With each of the other identities."""
IN_FLIGHT = 100


@pytest.mark.asyncio
async def test_a_registration_over_a_path_prefix_finds_every_service(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        answer = await here.restate.register(here.deployment_url)
        assert answer.status == 201
        assert sorted(answer.services) == ["Counter", "Echo", "Greeter", "Sleeper", "Trouble", "Worker"]
        assert {arrival.path for arrival in here.cloud_run.streams} == {"/discover"}


@pytest.mark.asyncio
async def test_a_plain_handler_returns(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register()
        assert await here.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")


@pytest.mark.asyncio
async def test_a_stateful_handler_finds_its_state_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register()
        answers = [await here.restate.invoke("Counter", "add", amount, key="a/b") for amount in (1, 2, 3)]
        assert answers == [(200, 1), (200, 3), (200, 6)]
        assert await here.restate.invoke("Counter", "add", 5, key="c") == (200, 5)


@pytest.mark.asyncio
async def test_a_sleeping_handler_suspends_and_comes_back(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register()
        assert await here.restate.invoke("Sleeper", "nap", 1.5) == (200, ["fell asleep", "woke up"])
        attempts = here.container.invocations("Sleeper")
        # One before and one after the sleep. A busy machine may take so long to take down a step that Restate suspends
        # the handler there, too.
        assert len(attempts) >= 2
        assert len({attempt.fields["x-restate-invocation-id"] for attempt in attempts}) == 1


@pytest.mark.asyncio
async def test_a_terminal_error_of_a_handler_is_returned_unchanged(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register()
        answer = await here.restate.invoke("Trouble", "refuse", "no more tea")
        assert answer.status == 418
        assert answer.value["message"] == "no more tea"
        assert len(here.container.invocations("Trouble")) == 1


@pytest.mark.asyncio
async def test_a_handler_that_fails_at_first_is_retried(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register()
        assert await here.restate.invoke("Trouble", "recover", 3) == (200, 4)
        assert len(here.container.invocations("Trouble")) == 4


@pytest.mark.asyncio
async def test_megabytes_are_forwarded_unchanged_both_ways(tmp_path: Path) -> None:
    text = "0123456789abcdef" * (8 << 16)
    async with world(tmp_path) as here:
        await here.register()
        answer = await here.restate.invoke("Echo", "echo", text)
        assert answer.status == 200
        assert answer.value == text


@pytest.mark.asyncio
async def test_a_deployment_may_use_http_1_1(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register(use_http_11=True)
        assert await here.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")
        assert await here.restate.invoke("Sleeper", "nap", 0.3) == (200, ["fell asleep", "woke up"])
        assert {seen.http_version for seen in here.container.seen} == {"2"}
        assert_all_signed(here)


@pytest.mark.asyncio
@pytest.mark.parametrize("identity", Identity, ids=lambda identity: identity.name.lower().replace("_", "-"))
async def test_many_invocations_get_correct_responses_and_share_one_token(tmp_path: Path, identity: Identity) -> None:
    invocations = INVOCATIONS if identity is Identity.METADATA else INVOCATIONS_OF_OTHERS
    async with world(tmp_path, identity) as here:
        await here.register()
        discovery = len(here.google.mints)
        assert discovery == len(here.container.discoveries())

        slots = asyncio.Semaphore(IN_FLIGHT)

        async def greet(number: int) -> None:
            async with slots:
                answer = await here.restate.invoke("Greeter", "greet", f"number {number}")
                assert answer == (200, f"Hello, number {number}!")

        async with asyncio.TaskGroup() as group:
            for number in range(invocations):
                group.create_task(greet(number))

        assert len(here.container.invocations("Greeter")) == invocations
        minted = here.google.mints[discovery:]
        assert [(mint.email, mint.audience) for mint in minted] == [(here.account, here.cloud_run.url)]
        assert minted[0].endpoint == endpoint(identity)
        assert_all_signed(here)


@pytest.mark.asyncio
async def test_each_discovery_gets_a_token_of_its_own(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register()
        await here.register()
        assert len(here.container.discoveries()) == 2
        assert len(here.google.mints) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("use_http_11", [False, True], ids=["h2c", "http-1.1"])
@pytest.mark.parametrize("gcp_id_token", [True, False], ids=["gcp-id-token", "extra-header"])
async def test_a_registration_with_a_token_of_restates_own_fails_at_once_and_says_how_to_register(
    tmp_path: Path, use_http_11: bool, gcp_id_token: bool
) -> None:
    async with world(tmp_path) as here:
        headers = {} if gcp_id_token else {"X-Serverless-Authorization": "Bearer made-up"}
        answer = await here.restate.register(
            here.deployment_url, headers=headers, use_http_11=use_http_11, gcp_id_token=gcp_id_token
        )
        assert answer.status == 500
        assert answer.body["restate_code"] == "META0003"
        assert "Register the same URL without Restate's --gcp-id-token" in answer.body["message"]
        await here.sidecar.program.line("token-from-caller")
        assert sum("token-from-caller" in line for line in here.sidecar.program.lines) == 1, "it is not tried again"
        assert here.cloud_run.streams == []

        await here.register(use_http_11=use_http_11)
        assert await here.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")
        assert_all_signed(here)
        assert here.cloud_run.verdicts.keys() == {Verdict.ACCEPTED}


@pytest.mark.asyncio
async def test_a_token_of_the_client_is_replaced_and_counted(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        fields = {"X-Serverless-Authorization": "Bearer made-up", "authorization": AUTHORIZATION}
        for _ in range(2):
            url = f"{here.deployment_url}/invoke/Greeter/greet"
            async with here.restate.http.post(url, headers=fields) as response:
                await response.read()
        assert_all_signed(here)
        assert here.cloud_run.verdicts.keys() == {Verdict.ACCEPTED}
        async with here.restate.http.get(f"http://{here.sidecar.admin}/metrics") as response:
            metrics = await response.text()
        assert f'cloudrun_sidecar_caller_tokens_dropped_total{{route="{ROUTE}"}} 2\n' in metrics
        warnings = await here.sidecar.logged("own Google token")
        assert [line["route"] for line in warnings] == [ROUTE]


@pytest.mark.asyncio
@pytest.mark.parametrize("identity", [Identity.METADATA, Identity.METADATA_IMPERSONATING], ids=["metadata", "iam"])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
async def test_without_a_token_nothing_reaches_cloud_run(tmp_path: Path, identity: Identity, fault: Fault) -> None:
    async with world(tmp_path, identity, "--mint-timeout", "1") as here:
        await here.register()
        arrived = len(here.cloud_run.streams)
        here.google.fail(endpoint(identity), fault)

        async with here.restate.http.get(f"{here.deployment_url}/discover") as discovery:
            assert discovery.status in (424, 503)
        await here.restate.invoke("Greeter", "greet", "Ada", send=True)
        await here.sidecar.program.line(r'"token mint failed".*"fresh": false')
    # Looked at when the sidecar has ended, so that nothing can come late.
    assert len(here.cloud_run.streams) == arrived


@pytest.mark.asyncio
async def test_a_registration_without_a_token_fails_at_once_and_says_what_to_do(tmp_path: Path) -> None:
    async with world(tmp_path, Identity.METADATA_IMPERSONATING) as here:
        here.google.forbid_impersonation(here.google.metadata_account, TARGET)
        answer = await here.restate.register(here.deployment_url)
        assert answer.status == 500
        assert "roles/iam.serviceAccountOpenIdTokenCreator" in answer.body["message"]
        assert here.google.calls["iam"] == 1
        assert here.cloud_run.streams == []


@pytest.mark.asyncio
async def test_invocations_wait_while_no_token_can_be_minted_and_continue_afterwards(tmp_path: Path) -> None:
    async with world(tmp_path) as here, asyncio.TaskGroup() as group:
        await here.register()
        here.google.fail("metadata", Fault.SERVER_ERROR)
        waiting = [group.create_task(here.restate.invoke("Greeter", "greet", f"{number}")) for number in range(20)]
        await here.sidecar.program.line(r'"token mint failed".*"fresh": false')
        assert here.container.invocations("Greeter") == []
        here.google.fail("metadata", None)
        assert await asyncio.gather(*waiting) == [(200, f"Hello, {number}!") for number in range(20)]


@pytest.mark.asyncio
async def test_invocations_with_a_large_input_wait_without_using_up_attempts(tmp_path: Path) -> None:
    text = "x" * (8 << 20)
    async with world(tmp_path, max_attempts=1) as here, asyncio.TaskGroup() as group:
        await here.register()
        here.google.fail("metadata", Fault.SERVER_ERROR)
        waiting = group.create_task(here.restate.invoke("Echo", "echo", text))
        # The answer comes, and then a reset with NO_ERROR, while most of the input is still to come.
        await here.restate.program.line("Invocation error, retrying in [1-5].*RT0023")
        here.google.fail("metadata", None)
        assert await waiting == (200, text)


@pytest.mark.asyncio
async def test_an_invocation_outlasts_more_503s_without_retry_after_than_it_has_attempts(tmp_path: Path) -> None:
    async with world(tmp_path, max_attempts=3) as here:
        await here.register()
        here.container.refusals_left = 4
        assert await here.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")
        # Discovery, four refusals, and the attempt that succeeds.
        assert here.cloud_run.verdicts[Verdict.ACCEPTED] == 1 + 4 + 1


@pytest.mark.asyncio
async def test_an_invocation_pauses_after_503s_where_no_retry_after_is_added(tmp_path: Path) -> None:
    async with world(tmp_path, Identity.METADATA, "--no-add-retry-after", max_attempts=3) as here:
        await here.register()
        here.container.refusals_left = 4
        await here.restate.invoke("Greeter", "greet", "Ada", send=True)
        await here.restate.program.line("pausing the invocation.*RT0023")
        assert here.container.refusals_left == 1


@pytest.mark.asyncio
async def test_live_invocations_finish_while_the_sidecar_drains(tmp_path: Path) -> None:
    async with world(tmp_path) as here, asyncio.TaskGroup() as group:
        await here.register()
        working = group.create_task(here.restate.invoke("Worker", "work", 2.0))
        await here.container.reached_by("Worker")
        here.sidecar.program.send(signal.SIGTERM)
        await here.sidecar.program.line('"draining"')
        assert await working == (200, "done")
        assert await here.sidecar.program.ended() == 0
        assert len(here.container.invocations("Worker")) == 1


def endpoint(identity: Identity) -> Endpoint:
    """Return which of Google's endpoints mints the ID token for it."""
    if identity.impersonates:
        return "iam"
    return "oauth" if identity.has_key else "metadata"


def assert_all_signed(here: World) -> None:
    """Assert that the container saw one verified token for it on every request, and the application's credential."""
    assert here.container.seen
    for seen in here.container.seen:
        assert seen.tokens == 1
        assert seen.signature_removed
        assert seen.claims["aud"] == here.cloud_run.url
        assert seen.claims["email"] == here.account
        assert seen.authorization == (AUTHORIZATION,)

"""Routes are edited while a real restate-server invokes through them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.world import ROUTE, Identity, World, world

IN_FLIGHT = 20


def table(name: str, url: str, *more: str) -> str:
    return "\n".join([f'[routes."{name}"]', f'url = "{url}"', *more, ""])


async def metrics(admin: str) -> list[tuple[str, dict[str, str], float]]:
    """Return name without prefix, labels and value of each sample."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{admin}/metrics") as page:
        families = text_string_to_metric_families(await page.text())
    return [
        (sample.name.removeprefix("cloudrun_sidecar_"), sample.labels, sample.value)
        for family in families
        for sample in family.samples
    ]


async def nothing_is_left_but(route: str, origin: str, here: World) -> None:
    """Check that metrics know no other route and no connection to another origin, and that every mint has ended."""
    found = await metrics(here.sidecar.admin)
    routes = {(labels["route"], name) for name, labels, _ in found if "route" in labels}
    assert {one for one, _ in routes} <= {route, "(unmatched)"}
    assert (route, "token_expiry_timestamp_seconds") in routes
    assert {value for name, _, value in found if name in ("requests_in_flight", "requests_waiting")} == {0}
    assert {labels["origin"] for _, labels, _ in found if "origin" in labels} == {origin}
    assert {value for name, _, value in found if name == "upstream_connections_opening"} == {0}
    ended_mints = [value for name, _, value in found if name == "token_mint_duration_seconds_count"]
    assert sum(ended_mints) == len(here.google.mints)


@pytest.mark.asyncio
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_routes_added_changed_and_removed_by_edit_under_load_fail_no_invocation(
    workers: str, tmp_path: Path
) -> None:
    async with world(tmp_path, Identity.METADATA, "--workers", workers) as here:
        await here.register()
        config = tmp_path / "routes.toml"
        url = str(here.cloud_run.url)
        by_name = url.replace("127.0.0.1", "localhost"), f'gcp_audience = "{url}"'
        log = here.sidecar.program
        edited = asyncio.Event()
        invoked = 0
        ended, more = Counter[int](), asyncio.Condition()

        def save(*tables: str) -> None:
            new = tmp_path / "new.toml"
            new.write_text("".join(tables))
            new.rename(config)

        async def invoke(number: int) -> None:
            nonlocal invoked
            while not edited.is_set():
                invoked += 1
                assert await here.restate.invoke("Greeter", "greet", f"{number}") == (200, f"Hello, {number}!")
                async with more:
                    ended[number] += 1
                    more.notify_all()

        async def earlier_ones_have_ended() -> None:
            before = ended.copy()
            async with more:
                await more.wait_for(lambda: all(ended[number] > before[number] for number in range(IN_FLIGHT)))

        async def register(route: str) -> None:
            answer = await here.restate.register(f"{here.sidecar.url}/{route}", force=True)
            assert answer.status in (200, 201), answer.body

        async with asyncio.TaskGroup() as group:
            for number in range(IN_FLIGHT):
                group.create_task(invoke(number))

            save(table(ROUTE, url), table("second", url))
            await log.line(r'"settings reloaded".*"routes_added": \["second"\]')
            await register("second")

            save(table(ROUTE, *by_name), table("second", url))
            await log.line(rf'"settings reloaded".*"routes_changed": \["{ROUTE}"\]')

            save(table(ROUTE, *by_name), table("second", "ftp://nowhere"))
            await log.line('"settings refused: those in force stay"')

            save(table(ROUTE, *by_name), table("second", *by_name))
            await log.line(r'"settings reloaded".*"routes_changed": \["second"\]')

            await register(ROUTE)
            await earlier_ones_have_ended()
            save(table(ROUTE, *by_name))
            await log.line(r'"routes removed: .*"routes": \["second"\]')
            await earlier_ones_have_ended()
            edited.set()

        assert len(here.container.invocations("Greeter")) == invoked
        assert {mint.audience for mint in here.google.mints} == {url}
        await nothing_is_left_but(ROUTE, by_name[0], here)

"""Routes are edited while a real restate-server invokes through them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.support.world import ROUTE, Identity, world

IN_FLIGHT = 20


def table(name: str, url: str, *more: str) -> str:
    return "\n".join([f'[routes."{name}"]', f'url = "{url}"', *more, ""])


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

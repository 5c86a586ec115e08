from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.loops import LOOPS


@pytest.mark.asyncio
async def test_a_slow_callback_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    assert asyncio.get_running_loop().get_debug()
    await asyncio.sleep(0)
    time.sleep(0.15)  # noqa: ASYNC251 - it has to block
    await asyncio.sleep(0)
    assert caplog.text == ""


@pytest.mark.parametrize("name", LOOPS)
def test_no_loop_logs_slow_callbacks(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def slow() -> None:
        time.sleep(0.15)  # noqa: ASYNC251 - it has to block

    with asyncio.Runner(loop_factory=LOOPS[name], debug=True) as runner:
        runner.run(slow())
    assert caplog.text == ""

from __future__ import annotations

import sys

import pytest

from tests.support.processes import program


@pytest.mark.asyncio
@pytest.mark.timeout(180)
async def test_whoever_follows_the_readme_gets_there() -> None:
    argv = ["unshare", "--net", sys.executable, "-m", "tests.readme.play"]
    async with program("a reader", argv) as reader:
        assert await reader.ended(within_seconds=170.0) == 0, reader.tail(60)
    done = "\n".join(reader.lines)
    for command in ("make demo", "gcloud run deploy", "serve", "check", "token --raw", "curl http://127.0.0.1:9070"):
        assert command in done

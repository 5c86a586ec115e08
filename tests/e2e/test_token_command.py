"""The real command `token`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.emulated_setup import emulated_setup


@pytest.mark.asyncio
async def test_token_shows_claims_and_prints_the_token_only_with_raw(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
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
    async with emulated_setup(tmp_path) as here:
        here.environment["NO_GCE_CHECK"] = "true"
        ran = await here.run("token", "svc", "--route", f"svc={here.url}")
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("cloudrun-sidecar: no Google credentials: ")
        unsigned = await here.run("token", "svc", "--route", f"svc={here.url}", "--no-gcp-id-token")
        assert (unsigned.code, unsigned.out) == (2, "")


@pytest.mark.asyncio
async def test_a_token_on_a_terminal_comes_with_a_warning(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        code, shown = await here.run_in_terminal("token", "--raw", "svc", "--route", f"svc={here.url}")
        note, token = shown.splitlines()
        assert code == 0
        assert note == f"This is a secret: for 60 min, anyone who has it can call {here.url}."
        assert token.count(".") == 2

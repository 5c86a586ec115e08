from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

from proxy.errors import Failure, ImpersonationDenied, TokenExpired, TokenTimeout, TokenUnavailable
from proxy.observe.observer import MintObserver
from proxy.tokens.minter import Minter
from proxy.tokens.model import Token, TokenKey
from tests.unit.tokens.fake_mint import Counted, FakeMint, FakeTime
from tests.unit.tokens.values import AUDIENCE, KEY, token_of


def timed(mint: Callable[[TokenKey], Any], time: FakeTime, counted: Counted, timeout_seconds: float = 5.0) -> Minter:
    return Minter(mint, time.clock, timeout_seconds, counted)


@pytest.mark.asyncio
async def test_a_mint_is_logged_and_counted_without_its_token(log_lines: list[Any]) -> None:
    time = FakeTime()
    counted = Counted(time.clock)
    key = TokenKey("other@project.iam.gserviceaccount.com", (), AUDIENCE)
    token = await timed(FakeMint(time), time, counted).mint(key, uncached=True)
    assert counted.minted_tokens == [token]
    assert log_lines == [
        {
            "event": "token minted",
            "log_level": "info",
            "audience": AUDIENCE,
            "impersonate": "other@project.iam.gserviceaccount.com",
            "principal": "me@example.com",
            "expires_at": "2027-01-15T09:00:00+00:00",
            "remaining_seconds": 3600,
            "fresh": True,
        }
    ]


@pytest.mark.asyncio
async def test_a_failure_is_logged_with_its_code_and_counted(log_lines: list[Any]) -> None:
    time = FakeTime()
    counted = Counted(time.clock)
    mint = FakeMint(time)
    mint.failure = ImpersonationDenied("grant the role")
    with pytest.raises(ImpersonationDenied):
        await timed(mint, time, counted).mint(KEY, uncached=False)
    assert counted.failures == [mint.failure]
    [line] = log_lines
    assert (line["event"], line["code"], line["error"]) == (
        "token mint failed",
        "impersonation-denied",
        "grant the role",
    )


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("failure", "level"), [(ImpersonationDenied("grant the role"), "error"), (TokenUnavailable("down"), "warning")]
)
async def test_a_permanent_failure_is_logged_as_error_and_a_transient_one_as_warning(
    log_lines: list[Any], failure: Failure, level: str
) -> None:
    time = FakeTime()
    mint = FakeMint(time)
    mint.failure = failure
    with pytest.raises(type(failure)):
        await timed(mint, time, Counted(time.clock)).mint(KEY, uncached=False)
    assert [line["log_level"] for line in log_lines] == [level]


@pytest.mark.asyncio
@pytest.mark.parametrize(("behind", "warned"), [(30.0, False), (31.0, True), (-3600.0, False)])
async def test_a_token_from_the_future_means_that_the_clock_is_behind(
    log_lines: list[Any], behind: float, warned: bool
) -> None:
    time = FakeTime()

    async def mint(key: TokenKey) -> Token:
        return replace(token_of(key, time.now + 3600), issued_at=time.now + behind)

    await timed(mint, time, Counted(time.clock)).mint(KEY, uncached=False)
    [*_, last] = log_lines
    assert (last["event"] == "the clock of this machine is behind Google's; set it") == warned
    assert last.get("seconds") == (31 if warned else None)


@pytest.mark.asyncio
async def test_an_observer_is_optional() -> None:
    time = FakeTime()
    mint = FakeMint(time)
    assert (await Minter(mint, time.clock, 5.0, MintObserver()).mint(KEY, uncached=False)).key == KEY
    mint.failure = TokenUnavailable("down")
    with pytest.raises(TokenUnavailable):
        await Minter(mint, time.clock, 5.0, MintObserver()).mint(KEY, uncached=False)


@pytest.mark.asyncio
async def test_a_mint_that_hangs_ends_at_the_deadline() -> None:
    time = FakeTime()
    counted = Counted(time.clock)
    mint = FakeMint(time)
    mint.gate = asyncio.Event()
    with pytest.raises(TokenTimeout, match=r"within 0\.01 s"):
        await timed(mint, time, counted, timeout_seconds=0.01).mint(KEY, uncached=False)


@pytest.mark.asyncio
@pytest.mark.parametrize("life", [0.0, -1.0, -86_400.0])
@pytest.mark.parametrize("behind", [0.0, 7200.0, -7200.0])
async def test_a_token_that_is_expired_by_googles_clock_is_a_failure(life: float, behind: float) -> None:
    time = FakeTime()
    counted = Counted(time.clock)
    mint = FakeMint(time, life)
    mint.behind = behind
    with pytest.raises(
        TokenExpired, match=f"had expired {abs(life):.0f} s before it arrived, by the clock of its issuer"
    ):
        await timed(mint, time, counted).mint(KEY, uncached=False)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("behind", "ahead", "event"),
    [
        (0.0, 0.0, "token minted"),
        (30.0, 0.0, "token minted"),
        (31.0, 31.0, "the clock of this machine is ahead of Google's; set it"),
        (7200.0, 7200.0, "the clock of this machine is ahead of Google's; set it"),
        (-30.0, 0.0, "token minted"),
        (-7200.0, -7200.0, "the clock of this machine is behind Google's; set it"),
    ],
)
async def test_the_expiry_is_translated_to_a_wrong_local_clock(
    log_lines: list[Any], behind: float, ahead: float, event: str
) -> None:
    time = FakeTime()
    counted = Counted(time.clock)
    mint = FakeMint(time)
    mint.behind = behind
    token = await timed(mint, time, counted).mint(KEY, uncached=False)
    assert token.expires_at == time.now - behind + 3600
    assert token.clock_ahead_seconds == ahead
    assert token.local_expiry == pytest.approx(time.now + 3600, abs=30)
    assert log_lines[-1]["event"] == event
    assert log_lines[0]["remaining_seconds"] == pytest.approx(3600, abs=30)


@pytest.mark.asyncio
async def test_an_undated_token_that_expired_by_this_clock_is_returned_unchanged(log_lines: list[Any]) -> None:
    time = FakeTime()
    mint = FakeMint(time, life=-7200.0)
    mint.dated = False
    token = await timed(mint, time, Counted(time.clock)).mint(KEY, uncached=False)
    assert token.local_expiry == time.now - 7200
    assert (log_lines[-1]["event"], log_lines[-1]["seconds"]) == (
        "the clock of this machine is ahead of Google's; set it",
        7200,
    )


@pytest.mark.asyncio
async def test_a_wrong_clock_is_warned_of_once_and_again_when_the_skew_changes(log_lines: list[Any]) -> None:
    time = FakeTime()
    mint = FakeMint(time)
    told = timed(mint, time, Counted(time.clock))
    for behind in (0.0, 3600.0, 3600.0, 3601.0, 3590.0, 7200.0, 7200.0, 0.0, 0.0, -40.0, -41.0):
        mint.behind = behind
        await told.mint(KEY, uncached=False)
    assert [(line["log_level"], line.get("seconds")) for line in log_lines if line["event"] != "token minted"] == [
        ("warning", 3600),
        ("warning", 7200),
        ("info", None),
        ("warning", 40),
    ]


@pytest.mark.asyncio
async def test_a_module_that_an_upgrade_has_removed_is_named_with_the_remedy() -> None:
    time = FakeTime()

    async def upgraded(key: TokenKey) -> Token:
        import_module("proxy.tokens.removed")
        raise AssertionError

    with pytest.raises(TokenUnavailable, match=r"proxy\.tokens\.removed cannot be imported; restart the sidecar"):
        await timed(upgraded, time, Counted(time.clock)).mint(KEY, uncached=False)


@pytest.mark.asyncio
async def test_an_internal_error_of_the_mint_is_a_failure_without_its_text(
    told: Callable[[BaseException], str], log_lines: list[Any]
) -> None:
    time = FakeTime()
    counted = Counted(time.clock)

    async def broken(key: TokenKey) -> Token:
        raise KeyError("eyJ-secret")

    with pytest.raises(TokenUnavailable, match="KeyError") as caught:
        await timed(broken, time, counted).mint(KEY, uncached=False)
    assert "eyJ-secret" not in told(caught.value)
    assert "eyJ-secret" not in repr(log_lines)
    assert isinstance(counted.failures[0], Failure)

"""Credentials that change while tokens of theirs are in use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from proxy.errors import CredentialsInvalid, CredentialsNotFound
from proxy.tokens.credentials import lookup
from proxy.tokens.google import GoogleMint
from proxy.tokens.source import TokenSource
from tests.unit.tokens.conftest import KEY_ACCOUNT, Home
from tests.unit.tokens.fake_google import FakeGoogle, Fault, answers, says_nothing
from tests.unit.tokens.values import ATTACHED, IMPERSONATED, KEY, TARGET

OTHER_ATTACHED = "other@project.iam.gserviceaccount.com"


class Changes:
    """What was said of changes."""

    def __init__(self, mint: GoogleMint) -> None:
        self.seen: list[tuple[int, str]] = []
        mint.on_change = lambda generation, now: self.seen.append((generation, now))


@pytest.fixture
def changes(mint: GoogleMint) -> Changes:
    return Changes(mint)


@pytest_asyncio.fixture
async def source(mint: GoogleMint) -> AsyncIterator[TokenSource]:
    made = TokenSource(mint, credentials=mint)
    yield made
    await made.close()


@pytest.mark.asyncio
async def test_the_same_content_written_again_is_no_change(
    google: FakeGoogle, home: Home, mint: GoogleMint, changes: Changes, key_info: dict[str, Any]
) -> None:
    path = home.file(key_info)
    await mint(KEY)
    path.write_text(path.read_text())
    os.utime(path, (1, 1))
    home.file(key_info, "new.json").rename(path)
    home.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
    await mint.check_for_change(tokens_kept=True)
    assert changes.seen == []
    assert (await mint(KEY)).generation == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["written", "another named", "none named", "removed", "broken", "no permission"])
async def test_a_check_notices_a_changed_file(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    changes: Changes,
    key_info: dict[str, Any],
    user_info: dict[str, Any],
    how: str,
) -> None:
    path = home.file(key_info)
    await mint(KEY)
    await mint.check_for_change(tokens_kept=True)
    assert changes.seen == []
    match how:
        case "written":
            home.file(user_info)
        case "another named":
            home.file(key_info, "other.json")
        case "none named":
            del home.environment["GOOGLE_APPLICATION_CREDENTIALS"]
        case "removed":
            path.unlink()
        case "broken":
            path.write_text("{")
        case "no permission":
            path.unlink()
            path.symlink_to(path)  # a loop of links cannot be read by anybody, root included
    await mint.check_for_change(tokens_kept=True)
    await mint.check_for_change(tokens_kept=True)
    now = {"written": str(path), "another named": str(home.folder / "other.json"), "none named": "metadata server"}
    assert changes.seen == [(1, now.get(how, "none that can be used"))]


@pytest.mark.asyncio
async def test_nothing_is_minted_from_broken_credentials_until_they_are_valid_again(
    google: FakeGoogle, home: Home, source: TokenSource, key_info: dict[str, Any]
) -> None:
    path = home.file(key_info)
    slot = source.slot(KEY)
    await source.token(KEY)
    path.write_text("junk")
    with pytest.raises(CredentialsInvalid):
        await source.mint_uncached(KEY)
    assert slot.token is None
    with pytest.raises(CredentialsInvalid):
        await source.token(KEY)
    home.file(key_info)
    await source.mint_uncached(KEY)
    assert (await source.token(KEY)).principal == KEY_ACCOUNT


@pytest.mark.asyncio
async def test_a_discovery_that_proves_another_identity_ends_the_old_one(
    google: FakeGoogle, home: Home, source: TokenSource, key_info: dict[str, Any]
) -> None:
    google.allow_impersonation((ATTACHED, TARGET), (KEY_ACCOUNT, TARGET))
    old = await source.token(KEY)
    impersonated = await source.token(IMPERSONATED)
    home.file(key_info)
    discovered = await source.mint_uncached(KEY)
    assert discovered.principal == KEY_ACCOUNT
    assert not source.is_current(old)
    assert not source.is_current(impersonated)
    assert (await source.token(KEY)).principal == KEY_ACCOUNT
    google.may_impersonate.remove((ATTACHED, TARGET))  # the old account can mint no more
    assert (await source.token(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
@pytest.mark.parametrize("shown_by", ["email", "token"])
async def test_another_account_at_the_metadata_server_is_a_change(
    google: FakeGoogle, mint: GoogleMint, changes: Changes, shown_by: str
) -> None:
    google.allow_impersonation((ATTACHED, TARGET))
    await mint(KEY)
    await mint.check_for_change(tokens_kept=True)
    assert (await mint(IMPERSONATED)).generation == 0
    google.attached = OTHER_ATTACHED
    if shown_by == "email":
        await mint.check_for_change(tokens_kept=True)
    else:
        assert (await mint(KEY)).generation == 1
    assert changes.seen == [(1, "metadata server")]
    await mint.check_for_change(tokens_kept=True)
    await mint.check_for_change(tokens_kept=True)
    token = await mint(KEY)
    assert (token.principal, token.generation) == (OTHER_ATTACHED, 1)
    google.may_impersonate = {(OTHER_ATTACHED, TARGET)}
    assert (await mint(IMPERSONATED)).generation == 1  # with an access token of the new account
    assert len(changes.seen) == 1


@pytest.mark.asyncio
async def test_an_account_that_was_detached_is_a_change(google: FakeGoogle, mint: GoogleMint, changes: Changes) -> None:
    await mint(KEY)
    await mint.check_for_change(tokens_kept=True)
    google.attached = None
    await mint.check_for_change(tokens_kept=True)
    assert [generation for generation, _ in changes.seen] == [1]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "fault",
    [
        answers(503, "", Metadata_Flavor="Google"),
        answers(429, "", Metadata_Flavor="Google"),
        answers(403, "", Metadata_Flavor="Google"),
        answers(200, "<html>a portal</html>"),
        answers(404, "not a metadata server"),
    ],
)
async def test_a_metadata_server_that_fails_is_no_change(
    google: FakeGoogle, mint: GoogleMint, changes: Changes, fault: Fault
) -> None:
    await mint(KEY)
    await mint.check_for_change(tokens_kept=True)
    google.break_next("/email", fault)
    await mint.check_for_change(tokens_kept=True)
    await mint.check_for_change(tokens_kept=True)
    assert changes.seen == []
    assert google.called("/email") == 3


@pytest.mark.asyncio
async def test_the_metadata_server_is_not_asked_while_no_token_is_cached(google: FakeGoogle, mint: GoogleMint) -> None:
    await mint(KEY)
    await mint.check_for_change(tokens_kept=False)
    assert google.called("/email") == 0
    await mint.check_for_change(tokens_kept=True)
    assert google.called("/email") == 1


@pytest.mark.asyncio
async def test_a_file_system_that_fails_is_no_change(
    google: FakeGoogle,
    home: Home,
    mint: GoogleMint,
    changes: Changes,
    key_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home.file(key_info)
    await mint(KEY)

    def fails(path: str) -> bytes:
        raise OSError(5, "Input/output error", path)

    with monkeypatch.context() as broken:
        broken.setattr(lookup, "read_regular", fails)
        await mint.check_for_change(tokens_kept=True)
        with pytest.raises(CredentialsInvalid, match="Input/output error"):
            await mint(KEY)
    assert changes.seen == []
    assert (await mint(KEY)).generation == 0


@pytest.mark.asyncio
async def test_a_mint_that_hangs_with_old_credentials_is_restarted_with_new_ones(
    google: FakeGoogle, home: Home, source: TokenSource, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    asked = asyncio.Event()

    async def silent(request: Any) -> Any:
        asked.set()
        return await says_nothing(request)

    google.break_next("/identity", silent)
    async with asyncio.TaskGroup() as group, asyncio.timeout(5):
        waiter = group.create_task(source.token(KEY))
        await asked.wait()
        home.file(key_info)
        await mint.check_for_change(tokens_kept=True)
    assert waiter.result().principal == KEY_ACCOUNT


@pytest.mark.asyncio
async def test_a_half_written_file_is_not_reported_as_broken(
    google: FakeGoogle, home: Home, mint: GoogleMint, changes: Changes, key_info: dict[str, Any]
) -> None:
    path = home.file(key_info)
    whole = path.read_text()
    await mint(KEY)
    path.write_text(whole[: len(whole) // 2])
    async with asyncio.TaskGroup() as group:
        look = group.create_task(mint.check_for_change(tokens_kept=True))
        asyncio.get_running_loop().call_later(0.1, path.write_text, whole)
    assert look.done()
    assert changes.seen == []


@pytest.mark.asyncio
async def test_a_permanent_failure_ends_when_the_file_is_corrected(
    google: FakeGoogle, home: Home, source: TokenSource, mint: GoogleMint, key_info: dict[str, Any]
) -> None:
    home.file("junk")
    with pytest.raises(CredentialsInvalid):
        await source.token(KEY)
    home.file(key_info)
    await mint.check_for_change(tokens_kept=True)
    assert (await source.token(KEY)).principal == KEY_ACCOUNT


@pytest.mark.asyncio
async def test_a_check_raises_nothing_if_nothing_can_be_reached(google: FakeGoogle, mint: GoogleMint) -> None:
    await google.stop()
    await mint.check_for_change(tokens_kept=True)
    with pytest.raises(CredentialsNotFound):
        await mint(KEY)

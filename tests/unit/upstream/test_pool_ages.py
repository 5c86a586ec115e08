"""The pool replaces old connections: first a new one, then the old one opens no more streams."""

from __future__ import annotations

import pytest

from proxy.http2.choice import EngineFactory
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.unit.upstream.pool_stage import REFUSED, PoolStage, failures_of, finish


def aged(make: EngineFactory, fraction: float = 0.0, **options: float) -> PoolStage:
    """Return a pool whose connections are replaced after 60 seconds, or with `fraction` 1.0 after 45."""
    return PoolStage(make, max_age_seconds=60.0, random_fraction=lambda: fraction, **options)


@each_bare_engine
@with_manual_clock
async def test_an_old_connection_is_replaced_before_it_takes_no_more_streams(make: EngineFactory) -> None:
    stage = aged(make)
    await stage.ask("a")
    old = await stage.service.accept(10)
    await skip(59.0)
    assert stage.service.dials == 1
    await skip(1.1)
    assert stage.service.dials == 2
    await stage.ask("b")
    assert old.connection.engine.count_open_streams() == 2, "until the new one is there, the old one is used"
    new = await stage.service.accept(10)
    await stage.ask("c")
    assert stage.opened == ["a", "b", "c"]
    assert new.connection.engine.count_open_streams() == 1
    finish(old, 1)
    assert not await old.gone(), "its other stream is live"
    finish(old, 3)
    assert await old.gone()
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_while_no_other_connection_can_be_opened_the_old_one_stays_in_use(make: EngineFactory) -> None:
    stage = aged(make)
    await stage.ask("a")
    old = await stage.service.accept(10)
    await skip(60.1)
    for _ in range(5):
        await stage.service.refuse(REFUSED)
        [request] = await stage.ask("b")
        assert request.done()
        dials = stage.service.dials
        await skip(0.9)
        assert stage.service.dials == dials, "a second between two attempts"
        await skip(1.2)
        assert stage.service.dials == dials + 1
    await stage.service.accept(10)
    assert old.connection.retiring
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_while_the_new_connection_offers_no_stream_the_old_one_stays_in_use(make: EngineFactory) -> None:
    stage = aged(make, max_connections=1)
    await stage.ask("a")
    old = await stage.service.accept(10)
    await skip(60.1)
    new = await stage.service.accept(0)
    await stage.ask("b")
    assert stage.opened == ["a", "b"]
    for _ in range(5):
        await skip(1.1)
    assert stage.service.dials == 2, "yet another one would not offer any either"
    assert not old.connection.retiring
    new.limit(10)
    await skip(1.1)
    assert old.connection.retiring
    await stage.ask("c")
    assert new.connection.engine.count_open_streams() == 1
    assert stage.service.dials == 2
    await stage.close()


@with_manual_clock
async def test_an_old_connection_without_streams_gives_way_to_one_that_offers_none_either(make: EngineFactory) -> None:
    stage = aged(make)
    tasks = await stage.ask("a")
    old = await stage.service.accept(0)
    await skip(60.1)
    assert await failures_of(tasks) == {"upstream-saturated": 1}
    await stage.service.accept(0)
    assert await old.gone()
    await skip(5.0)
    assert stage.service.dials == 2
    await stage.close()


@with_manual_clock
async def test_an_old_connection_without_streams_closes_at_once_beside_another_one(make: EngineFactory) -> None:
    stage = aged(make)
    await stage.ask("a")
    old = await stage.service.accept(1)
    await stage.ask("b")
    await stage.service.accept(10)
    finish(old, 1)
    await skip(60.1)
    assert await old.gone()
    assert stage.service.dials == 3, "only the one that is in use is replaced"
    await stage.close()


@with_manual_clock
async def test_an_old_connection_without_streams_is_replaced_first_where_no_other_has_a_free_one(
    make: EngineFactory,
) -> None:
    stage = aged(make)
    await stage.ask("a")
    full = await stage.service.accept(1)
    await stage.ask("b")
    idle = await stage.service.accept(10)
    finish(idle, 1)
    await skip(60.1)
    assert stage.service.dials == 3
    assert not idle.connection.retiring
    finish(full, 1)
    await stage.service.accept(10)
    assert await full.gone()
    await skip(1.1)
    assert await idle.gone(), "now another one has"
    await skip(59.0)
    assert stage.service.dials == 4
    assert [connection.retiring for connection in stage.pool.connections] == [False]
    await stage.close()


@with_manual_clock
async def test_one_connection_at_a_time_is_replaced(make: EngineFactory) -> None:
    stage = aged(make, max_connections=2)
    await stage.ask("a", "b")
    olds = [await stage.service.accept(1), await stage.service.accept(1)]
    await skip(60.1)
    assert len(stage.service.dialling) == 1
    await stage.service.accept(1)
    assert [far.connection.retiring for far in olds] == [True, False]
    await skip(1.1)
    assert len(stage.service.dialling) == 1
    await stage.service.accept(1)
    assert [far.connection.retiring for far in olds] == [True, True]
    await stage.close()


@with_manual_clock
async def test_connections_are_replaced_up_to_a_quarter_earlier(make: EngineFactory) -> None:
    stage = aged(make, fraction=1.0)
    await stage.ask("a")
    await stage.service.accept(10)
    await skip(44.9)
    assert stage.service.dials == 1
    await skip(0.2)
    assert stage.service.dials == 2
    await stage.close()


@with_manual_clock
async def test_a_connection_that_ends_by_itself_is_not_replaced(make: EngineFactory) -> None:
    stage = aged(make)
    await stage.ask("a")
    old = await stage.service.accept(10)
    old.send(old.go_away(1))
    await skip(61.0)
    assert stage.service.dials == 1
    finish(old, 1)
    assert await old.gone()
    await loop_idle()
    await stage.close()


@pytest.fixture
def make() -> EngineFactory:
    from proxy.http2.portable.engine import PortableEngine

    return PortableEngine

"""What metrics and the status page read of a dispatcher."""

from __future__ import annotations

from proxy.http2.choice import EngineFactory
from proxy.observe.live import OriginState, TokenState
from proxy.relay.live import DispatcherState
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine


async def mint(key: TokenKey) -> Token:
    return Token(key=key, authorization=b"Bearer minted", expires_at=1_800_003_600.0, principal="i@p.com")


@each_bare_engine
def test_the_live_state_is_that_of_the_dispatcher_its_slots_and_pools(make: EngineFactory) -> None:
    signed, unsigned = route("svc", signed=True), route("open")
    with World(signed, unsigned, make=make, tokens=lambda clock: TokenSource(mint, clock=clock)) as world:
        now = [1_800_000_000.0]
        state = DispatcherState(world.dispatcher, world.budget, clock=lambda: now[0])
        assert list(state.routes()) == [signed, unsigned]
        assert state.token(signed) is None
        assert state.origin(signed) == OriginState("https://svc.example", 0, 0)
        world.client().request("/svc/x", end=True)
        world.settle()
        assert state.token(signed) == TokenState("i@p.com", None, 1_800_003_600.0)
        assert state.token(unsigned) is None
        now[0] = 1_800_003_600.0
        assert state.token(signed) is None
        gone = route("gone")
        assert state.token(gone) is None
        assert state.origin(gone) is None
        assert (state.draining, state.queued_octets_limit) == (False, 1 << 20)
        assert state.queued_octets == world.budget.queued_octets > 0, "the request's head is held"
        world.dispatcher.draining = True
        assert state.draining

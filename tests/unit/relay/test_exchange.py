"""The states of one exchange, checked against what RFC 9113 and the README's promises say, not against the table."""

from __future__ import annotations

from sys import getrefcount

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.connection.budget import Budget
from proxy.http2.engine import Stream
from proxy.http2.events import Fields
from proxy.observe.exchange import RouteObservers
from proxy.relay.exchange import Exchange, ExchangeOwner
from proxy.relay.states import TRANSITIONS, Action, IllegalMove, Move, State

REQUEST_MOVES = {Move.REQUEST_DATA, Move.REQUEST_END, Move.REQUEST_RESET}


def is_over(exchange: Exchange) -> bool:
    return exchange.state is State.OVER


class SilentOwner(ExchangeOwner):
    """An owner that is asked for nothing, because only states are looked at."""

    def __init__(self) -> None:
        super().__init__(1)


def exchange_after(*moves: Move) -> Exchange:
    exchange = Exchange()
    account = Budget(1).open_account(lambda *_: None)
    exchange.begin_content(Stream(), [], account)
    exchange.begin(SilentOwner(), RouteObservers([]), False, 0.0)
    for move in moves:
        exchange.on(move)
    return exchange


def sent(*moves: Move) -> Exchange:
    """An exchange whose request is on its way."""
    return exchange_after(Move.START, *moves)


def test_a_plain_exchange_ends_when_both_halves_have_ended() -> None:
    exchange = sent(Move.REQUEST_DATA, Move.REQUEST_END, Move.RESPONSE_HEAD, Move.RESPONSE_DATA)
    assert not is_over(exchange)
    assert exchange.on(Move.RESPONSE_END) == Action.FORWARD
    assert is_over(exchange)


def test_content_received_before_the_start_is_held() -> None:
    exchange = exchange_after()
    assert exchange.on(Move.REQUEST_DATA) == Action.HOLD
    assert exchange.on(Move.REQUEST_END) == Action.HOLD
    assert exchange.on(Move.START) == Action.FORWARD
    assert exchange.state is State.REPLAYABLE_ENDED


@pytest.mark.parametrize("ended", [True, False])
def test_a_held_request_can_be_sent_again_and_any_other_fails(ended: bool) -> None:
    moves = [Move.REQUEST_END] if ended else []
    exchange = sent(*moves)
    assert exchange.on(Move.UNPROCESSED) == Action.RESEND
    assert exchange.on(Move.START) == Action.FORWARD
    exchange.on(Move.COMMIT)
    assert exchange.on(Move.UNPROCESSED) == Action.REPLY
    assert is_over(exchange) == ended


def test_an_interim_head_commits_the_request() -> None:
    assert sent(Move.INTERIM).on(Move.UNPROCESSED) == Action.REPLY


def test_held_content_that_is_dropped_is_freed() -> None:
    exchange = exchange_after()
    first, more = bytes(2_000), bytes(2_001)
    trailers: Fields = [(b"x-checksum", b"1", False)]
    references = [getrefcount(held) for held in (first, more, trailers)]
    exchange.hold(first)
    exchange.hold(more)
    exchange.hold_trailers(trailers)
    exchange.drop_held()
    assert [getrefcount(held) for held in (first, more, trailers)] == references


def test_the_response_may_end_before_the_request_which_goes_on() -> None:
    exchange = sent(Move.RESPONSE_HEAD, Move.RESPONSE_END)
    assert exchange.state is State.RESPONSE_DONE
    assert exchange.on(Move.REQUEST_DATA) == Action.FORWARD
    assert exchange.on(Move.REQUEST_END) == Action.FORWARD
    assert is_over(exchange)


def test_no_error_after_a_complete_response_is_success_and_the_rest_is_discarded() -> None:
    exchange = sent(Move.RESPONSE_HEAD, Move.RESPONSE_END)
    assert exchange.on(Move.UNWANTED) == Action.NOTHING
    assert exchange.on(Move.REQUEST_DATA) == Action.DISCARD
    assert exchange.on(Move.REQUEST_END) == Action.DISCARD
    assert is_over(exchange)


def test_a_failure_before_the_head_is_answered_and_after_it_is_a_reset() -> None:
    assert exchange_after().on(Move.FAILED) == Action.REPLY
    assert exchange_after(Move.REQUEST_END).on(Move.FAILED) == Action.REPLY
    assert sent().on(Move.FAILED) == Action.REPLY
    assert sent(Move.REQUEST_END).on(Move.FAILED) == Action.REPLY
    assert sent(Move.INTERIM).on(Move.FAILED) == Action.REPLY
    assert sent(Move.RESPONSE_HEAD).on(Move.FAILED) == Action.RESET
    assert sent(Move.REQUEST_END, Move.RESPONSE_HEAD).on(Move.FAILED) == Action.RESET


def test_a_lost_upstream_does_not_spoil_a_complete_response() -> None:
    exchange = sent(Move.RESPONSE_HEAD, Move.RESPONSE_END)
    assert exchange.on(Move.FAILED) == Action.NOTHING
    assert exchange.state is State.DISCARDING


def test_an_eviction_is_answered_before_the_head_and_after_it_also_gives_up_a_complete_response() -> None:
    assert exchange_after().on(Move.EVICTED) == Action.REPLY
    assert sent(Move.REQUEST_END).on(Move.EVICTED) == Action.REPLY
    for moves in (
        [Move.RESPONSE_HEAD],
        [Move.REQUEST_END, Move.RESPONSE_HEAD],
        [Move.RESPONSE_HEAD, Move.RESPONSE_END],
        [Move.FAILED],
    ):
        exchange = sent(*moves)
        assert exchange.on(Move.EVICTED) == Action.RESET
        assert is_over(exchange)


def test_after_a_local_reply_the_rest_of_the_request_is_discarded() -> None:
    exchange = exchange_after(Move.FAILED)
    assert exchange.on(Move.REQUEST_DATA) == Action.DISCARD
    assert exchange.on(Move.REQUEST_RESET) == Action.NOTHING
    assert is_over(exchange)


@pytest.mark.parametrize("state", list(State))
def test_an_internal_error_ends_the_exchange_in_any_state(state: State) -> None:
    after, action = TRANSITIONS[state, Move.INTERNAL_ERROR]
    assert after is State.OVER
    assert action is (Action.NOTHING if state == State.OVER else Action.RESET)


def test_an_illegal_move_raises_and_changes_nothing() -> None:
    exchange = sent(Move.REQUEST_END)
    with pytest.raises(IllegalMove, match="REQUEST_DATA in REPLAYABLE_ENDED"):
        exchange.on(Move.REQUEST_DATA)
    assert exchange.state is State.REPLAYABLE_ENDED
    with pytest.raises(IllegalMove):
        exchange_after().on(Move.RESPONSE_DATA)


@pytest.mark.parametrize(
    "moves",
    [
        [Move.REQUEST_RESET],
        [Move.RESPONSE_RESET],
        [Move.RESPONSE_HEAD, Move.RESPONSE_RESET],
        [Move.RESPONSE_HEAD, Move.RESPONSE_END, Move.RESPONSE_RESET],
    ],
)
def test_a_reset_is_forwarded_and_ends_the_exchange(moves: list[Move]) -> None:
    exchange = sent(*moves[:-1])
    assert exchange.on(moves[-1]) == Action.FORWARD
    for move in set(Move) - {Move.INTERNAL_ERROR}:
        with pytest.raises(IllegalMove):
            exchange.on(move)


class Oracle:
    """What two independent halves allow: kept as facts, not as states."""

    def __init__(self) -> None:
        self.started = self.committed = False
        self.request_ended = self.head = self.response_ended = self.dead = self.unwanted = False

    def legal(self, move: Move) -> bool:
        if move is Move.INTERNAL_ERROR:
            return True
        if self.over:
            return False
        if move in (Move.REQUEST_DATA, Move.REQUEST_END):
            return not self.request_ended
        if move is Move.REQUEST_RESET:
            return True
        if move is Move.DISCARDED_ENOUGH:
            return self.unwanted
        if self.unwanted:
            return move is Move.EVICTED
        if move is Move.START:
            return not self.started
        if not self.started:
            return move in (Move.FAILED, Move.EVICTED)
        if move is Move.COMMIT:
            return not self.committed and not self.head
        if move in (Move.INTERIM, Move.RESPONSE_HEAD):
            return not self.head
        if move in (Move.RESPONSE_DATA, Move.RESPONSE_END):
            return self.head and not self.response_ended
        return self.response_ended or move is not Move.UNWANTED

    def apply(self, move: Move) -> None:
        if move is Move.REQUEST_END:
            self.request_ended = True
        elif move is Move.START:
            self.started = True
        elif move in (Move.COMMIT, Move.INTERIM):
            self.committed = True
        elif move is Move.RESPONSE_HEAD:
            self.head = True
        elif move is Move.RESPONSE_END:
            self.response_ended = True
        elif move in (Move.REQUEST_RESET, Move.RESPONSE_RESET, Move.INTERNAL_ERROR, Move.DISCARDED_ENOUGH):
            self.dead = True
        elif move is Move.UNWANTED:
            self.unwanted = True
        elif move is Move.UNPROCESSED and not self.committed and not self.head:
            self.started = False
        elif move is Move.EVICTED and self.head:
            self.dead = True
        elif move in (Move.FAILED, Move.UNPROCESSED, Move.EVICTED):
            if self.head and not self.response_ended:
                self.dead = True
            else:
                self.head = self.response_ended = self.unwanted = True

    @property
    def over(self) -> bool:
        return self.dead or (self.request_ended and self.response_ended)


@given(st.lists(st.sampled_from(list(Move)), max_size=30))
def test_the_table_allows_exactly_what_two_independent_halves_allow(moves: list[Move]) -> None:
    exchange, oracle = exchange_after(), Oracle()
    for move in moves:
        if oracle.legal(move):
            action = exchange.on(move)
            assert (action == Action.DISCARD) == (
                oracle.unwanted and not oracle.over and move in REQUEST_MOVES - {Move.REQUEST_RESET}
            )
            assert (action == Action.HOLD) == (
                not oracle.started
                and not oracle.over
                and not oracle.unwanted
                and move in REQUEST_MOVES - {Move.REQUEST_RESET}
            )
            oracle.apply(move)
        else:
            with pytest.raises(IllegalMove):
                exchange.on(move)
        assert is_over(exchange) == oracle.over

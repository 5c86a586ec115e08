"""The states of one exchange, checked against what RFC 9113 and the README's promises say, not against the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.exchange import Action, Exchange, IllegalMove, Move, State

REQUEST_MOVES = {Move.REQUEST_DATA, Move.REQUEST_END, Move.REQUEST_RESET}


def after(*moves: Move) -> Exchange:
    exchange = Exchange()
    for move in moves:
        exchange.on(move)
    return exchange


def test_a_plain_exchange_ends_when_both_halves_have_ended() -> None:
    exchange = after(Move.REQUEST_DATA, Move.REQUEST_END, Move.RESPONSE_HEAD, Move.RESPONSE_DATA)
    assert not exchange.over
    assert exchange.on(Move.RESPONSE_END) is Action.PASS
    assert exchange.over


def test_the_response_may_end_before_the_request_which_goes_on() -> None:
    exchange = after(Move.RESPONSE_HEAD, Move.RESPONSE_END)
    assert exchange.state is State.ANSWERED
    assert exchange.on(Move.REQUEST_DATA) is Action.PASS
    assert exchange.on(Move.REQUEST_END) is Action.PASS
    assert exchange.over


def test_no_error_after_a_complete_response_is_success_and_the_rest_is_discarded() -> None:
    exchange = after(Move.RESPONSE_HEAD, Move.RESPONSE_END)
    assert exchange.on(Move.UNWANTED) is Action.NOTHING
    assert exchange.on(Move.REQUEST_DATA) is Action.DISCARD
    assert exchange.on(Move.REQUEST_END) is Action.DISCARD
    assert exchange.over


def test_no_error_before_a_complete_response_is_a_reset_like_any_other() -> None:
    for moves in ([], [Move.REQUEST_END], [Move.RESPONSE_HEAD], [Move.REQUEST_END, Move.RESPONSE_HEAD]):
        exchange = after(*moves)
        assert exchange.on(Move.UNWANTED) is Action.PASS
        assert exchange.over


def test_a_failure_before_the_head_is_answered_and_after_it_is_a_reset() -> None:
    assert after().on(Move.FAILED) is Action.ANSWER
    assert after(Move.REQUEST_END).on(Move.FAILED) is Action.ANSWER
    assert after(Move.INTERIM).on(Move.FAILED) is Action.ANSWER
    assert after(Move.RESPONSE_HEAD).on(Move.FAILED) is Action.RESET
    assert after(Move.REQUEST_END, Move.RESPONSE_HEAD).on(Move.FAILED) is Action.RESET


def test_a_lost_upstream_does_not_spoil_a_complete_response() -> None:
    exchange = after(Move.RESPONSE_HEAD, Move.RESPONSE_END)
    assert exchange.on(Move.FAILED) is Action.NOTHING
    assert exchange.state is State.DISCARDING


def test_too_much_of_a_request_that_nobody_wants_resets_it() -> None:
    exchange = after(Move.RESPONSE_HEAD, Move.RESPONSE_END, Move.UNWANTED, Move.REQUEST_DATA)
    assert exchange.on(Move.DISCARDED_ENOUGH) is Action.RESET
    assert exchange.over


def test_what_is_answered_while_the_request_is_open_discards_the_rest_of_it() -> None:
    exchange = after(Move.FAILED)
    assert exchange.on(Move.REQUEST_DATA) is Action.DISCARD
    assert exchange.on(Move.REQUEST_RESET) is Action.NOTHING
    assert exchange.over


@pytest.mark.parametrize("moves", [[], [Move.REQUEST_END], [Move.RESPONSE_HEAD], [Move.FAILED]])
def test_a_defect_of_ours_is_a_reset_wherever_the_exchange_stands(moves: list[Move]) -> None:
    exchange = after(*moves)
    assert exchange.on(Move.BROKEN) is Action.RESET
    assert exchange.over


def test_an_illegal_move_raises_and_changes_nothing() -> None:
    exchange = after(Move.REQUEST_END)
    with pytest.raises(IllegalMove, match="REQUEST_DATA in AWAITING"):
        exchange.on(Move.REQUEST_DATA)
    assert exchange.state is State.AWAITING
    exchange = Exchange()
    with pytest.raises(IllegalMove):
        exchange.on(Move.RESPONSE_DATA)


@pytest.mark.parametrize(
    "moves", [[Move.REQUEST_RESET], [Move.RESPONSE_RESET], [Move.RESPONSE_HEAD, Move.RESPONSE_RESET]]
)
def test_a_reset_crosses_over_and_nothing_comes_after_it(moves: list[Move]) -> None:
    exchange = after(*moves[:-1])
    assert exchange.on(moves[-1]) is Action.PASS
    for move in Move:
        with pytest.raises(IllegalMove):
            exchange.on(move)


class Oracle:
    """What two independent halves allow: kept as four facts, not as states."""

    def __init__(self) -> None:
        self.request_ended = self.head = self.response_ended = self.dead = self.unwanted = False

    def legal(self, move: Move) -> bool:
        if self.dead or (self.request_ended and self.response_ended):
            return False
        if move in (Move.REQUEST_DATA, Move.REQUEST_END):
            return not self.request_ended
        if move in (Move.REQUEST_RESET, Move.BROKEN):
            return True
        if move is Move.DISCARDED_ENOUGH:
            return self.unwanted
        if self.unwanted:
            return False
        if move in (Move.INTERIM, Move.RESPONSE_HEAD):
            return not self.head
        if move in (Move.RESPONSE_DATA, Move.RESPONSE_END):
            return self.head and not self.response_ended
        return True

    def apply(self, move: Move) -> None:
        if move is Move.REQUEST_END:
            self.request_ended = True
        elif move is Move.RESPONSE_HEAD:
            self.head = True
        elif move is Move.RESPONSE_END:
            self.response_ended = True
        elif move in (Move.REQUEST_RESET, Move.RESPONSE_RESET, Move.BROKEN, Move.DISCARDED_ENOUGH):
            self.dead = True
        elif move is Move.UNWANTED:
            self.unwanted, self.dead = self.response_ended, not self.response_ended
        elif move is Move.FAILED:
            if self.head and not self.response_ended:
                self.dead = True
            else:
                self.head = self.response_ended = self.unwanted = True

    @property
    def over(self) -> bool:
        return self.dead or (self.request_ended and self.response_ended)


@given(st.lists(st.sampled_from(list(Move)), max_size=30))
def test_the_machine_allows_exactly_what_two_independent_halves_allow(moves: list[Move]) -> None:
    exchange, oracle = Exchange(), Oracle()
    for move in moves:
        if oracle.legal(move):
            action = exchange.on(move)
            assert (action is Action.DISCARD) == (oracle.unwanted and move in REQUEST_MOVES - {Move.REQUEST_RESET})
            oracle.apply(move)
        else:
            with pytest.raises(IllegalMove):
                exchange.on(move)
        assert exchange.over == oracle.over
        if not oracle.over:
            assert exchange.answered == oracle.head

"""One exchange as a state machine: what each side did, and what must be done about it. Pure.

The request and the response are two halves that end independently of each other, so the states are the pairs of what
is left to come::

                     request open                      request ended
    no response yet  REQUESTING ────request ends─────▶ AWAITING
                         │ response head                   │ response head
    response open    STREAMING ─────request ends─────▶ RECEIVING
                         │ response ends                   │ response ends
    response ended   ANSWERED ──────request ends─────▶ OVER
                         │ upstream wants no more          ▲
                     DISCARDING ────request ends───────────┘
                                    or too much of it comes

A reset from either side ends everything and crosses over with its code. One exception: RST_STREAM(NO_ERROR) after
a complete response only says that the rest of the request is not wanted (RFC 9113, 8.1). That is success; a little of
what still comes of the request is discarded, because most requests end soon. If more comes, the caller is told so in
the same way, behind the whole response.

An upstream failure before the response head is answered in the upstream's stead; after it, it is a reset, never an end
that looks clean. A defect of ours is a reset at any time.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["Action", "Exchange", "IllegalMove", "Move", "State"]


class State(Enum):
    """What is left to come of an exchange."""

    __hash__ = object.__hash__  # Enum's own is written in Python: 0.2 µs, six times an exchange

    REQUESTING = "request open, no response yet"
    AWAITING = "request ended, no response yet"
    STREAMING = "request and response open"
    RECEIVING = "request ended, response open"
    ANSWERED = "response ended, request open and wanted"
    DISCARDING = "response ended, request open and not wanted"
    OVER = "nothing"


class Move(Enum):
    """What a side did. `*_END` may carry the last data or trailers."""

    __hash__ = object.__hash__  # Enum's own is written in Python: 0.2 µs, six times an exchange

    REQUEST_DATA = "downstream sent content"
    REQUEST_END = "downstream ended the request"
    REQUEST_RESET = "downstream reset the stream, or its connection is lost"
    INTERIM = "upstream sent a 1xx head"
    RESPONSE_HEAD = "upstream sent its final head"
    RESPONSE_DATA = "upstream sent content"
    RESPONSE_END = "upstream ended the response"
    RESPONSE_RESET = "upstream reset the stream"
    UNWANTED = "upstream reset the stream with NO_ERROR"
    DISCARDED_ENOUGH = "downstream sent more of a request that nobody wants than is discarded"
    FAILED = "no upstream was reached, or its connection is lost"
    BROKEN = "neither did anything: a defect of ours showed"


class Action(Enum):
    """What must now be done."""

    PASS = "pass it on to the other side"  # noqa: S105 - not a password
    DISCARD = "give its octets back and drop it"
    ANSWER = "answer downstream in the upstream's stead"
    RESET = "reset the downstream stream"
    NOTHING = "nothing"


class IllegalMove(Exception):
    """A side did what it cannot do in this state; the engines should have caught it."""


_S, _M, _A = State, Move, Action

_TABLE: Final[dict[tuple[State, Move], tuple[State, Action]]] = {
    (_S.REQUESTING, _M.REQUEST_DATA): (_S.REQUESTING, _A.PASS),
    (_S.REQUESTING, _M.REQUEST_END): (_S.AWAITING, _A.PASS),
    (_S.REQUESTING, _M.REQUEST_RESET): (_S.OVER, _A.PASS),
    (_S.REQUESTING, _M.INTERIM): (_S.REQUESTING, _A.PASS),
    (_S.REQUESTING, _M.RESPONSE_HEAD): (_S.STREAMING, _A.PASS),
    (_S.REQUESTING, _M.RESPONSE_RESET): (_S.OVER, _A.PASS),
    (_S.REQUESTING, _M.UNWANTED): (_S.OVER, _A.PASS),
    (_S.REQUESTING, _M.FAILED): (_S.DISCARDING, _A.ANSWER),
    (_S.REQUESTING, _M.BROKEN): (_S.OVER, _A.RESET),
    (_S.AWAITING, _M.REQUEST_RESET): (_S.OVER, _A.PASS),
    (_S.AWAITING, _M.INTERIM): (_S.AWAITING, _A.PASS),
    (_S.AWAITING, _M.RESPONSE_HEAD): (_S.RECEIVING, _A.PASS),
    (_S.AWAITING, _M.RESPONSE_RESET): (_S.OVER, _A.PASS),
    (_S.AWAITING, _M.UNWANTED): (_S.OVER, _A.PASS),
    (_S.AWAITING, _M.FAILED): (_S.OVER, _A.ANSWER),
    (_S.AWAITING, _M.BROKEN): (_S.OVER, _A.RESET),
    (_S.STREAMING, _M.REQUEST_DATA): (_S.STREAMING, _A.PASS),
    (_S.STREAMING, _M.REQUEST_END): (_S.RECEIVING, _A.PASS),
    (_S.STREAMING, _M.REQUEST_RESET): (_S.OVER, _A.PASS),
    (_S.STREAMING, _M.RESPONSE_DATA): (_S.STREAMING, _A.PASS),
    (_S.STREAMING, _M.RESPONSE_END): (_S.ANSWERED, _A.PASS),
    (_S.STREAMING, _M.RESPONSE_RESET): (_S.OVER, _A.PASS),
    (_S.STREAMING, _M.UNWANTED): (_S.OVER, _A.PASS),
    (_S.STREAMING, _M.FAILED): (_S.OVER, _A.RESET),
    (_S.STREAMING, _M.BROKEN): (_S.OVER, _A.RESET),
    (_S.RECEIVING, _M.REQUEST_RESET): (_S.OVER, _A.PASS),
    (_S.RECEIVING, _M.RESPONSE_DATA): (_S.RECEIVING, _A.PASS),
    (_S.RECEIVING, _M.RESPONSE_END): (_S.OVER, _A.PASS),
    (_S.RECEIVING, _M.RESPONSE_RESET): (_S.OVER, _A.PASS),
    (_S.RECEIVING, _M.UNWANTED): (_S.OVER, _A.PASS),
    (_S.RECEIVING, _M.FAILED): (_S.OVER, _A.RESET),
    (_S.RECEIVING, _M.BROKEN): (_S.OVER, _A.RESET),
    (_S.ANSWERED, _M.REQUEST_DATA): (_S.ANSWERED, _A.PASS),
    (_S.ANSWERED, _M.REQUEST_END): (_S.OVER, _A.PASS),
    (_S.ANSWERED, _M.REQUEST_RESET): (_S.OVER, _A.PASS),
    (_S.ANSWERED, _M.RESPONSE_RESET): (_S.OVER, _A.PASS),
    (_S.ANSWERED, _M.UNWANTED): (_S.DISCARDING, _A.NOTHING),
    (_S.ANSWERED, _M.FAILED): (_S.DISCARDING, _A.NOTHING),
    (_S.ANSWERED, _M.BROKEN): (_S.OVER, _A.RESET),
    (_S.DISCARDING, _M.REQUEST_DATA): (_S.DISCARDING, _A.DISCARD),
    (_S.DISCARDING, _M.REQUEST_END): (_S.OVER, _A.DISCARD),
    (_S.DISCARDING, _M.REQUEST_RESET): (_S.OVER, _A.NOTHING),
    (_S.DISCARDING, _M.DISCARDED_ENOUGH): (_S.OVER, _A.RESET),
    (_S.DISCARDING, _M.BROKEN): (_S.OVER, _A.RESET),
}

# An attribute of an Enum costs 50 ns (CPython 3.11), a global name 2, the pair that `_TABLE` is asked with 40; and an
# exchange makes four moves.
_MOVES: Final = {state: {move: entry for (before, move), entry in _TABLE.items() if before is state} for state in State}
_FIRST: Final = State.REQUESTING
_LAST: Final = State.OVER


class Exchange:
    """One request and its response, seen from between the two connections."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = _FIRST

    def on(self, move: Move) -> Action:
        """Enter the next state and return what must be done; IllegalMove leaves the state as it was."""
        try:
            self.state, action = _MOVES[self.state][move]
        except KeyError:
            raise IllegalMove(f"{move.name} in {self.state.name}") from None
        return action

    @property
    def over(self) -> bool:
        """Whether both halves are finished."""
        return self.state is _LAST

    @property
    def answered(self) -> bool:
        """Whether a response head has gone downstream (or everything is over)."""
        return self.state not in (State.REQUESTING, State.AWAITING)

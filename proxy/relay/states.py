"""The states of an exchange, the moves between them, and the action of each move. Pure.

An exchange is in the left column until the request has ended, then in the right one::

                          request open                          request ended
    no upstream stream    WAITING ───────────request ends─────▶ WAITING_ENDED
                             │ ▲ start, unprocessed                │ ▲ start, unprocessed
    all of it held        REPLAYABLE ────────request ends─────▶ REPLAYABLE_ENDED
                             │ too large, 1xx                      │ 1xx
    no response yet       REQUESTING ────────request ends─────▶ AWAITING
                             │ response head (from all above)      │
    response open         STREAMING ─────────request ends─────▶ RECEIVING
                             │ response ends                       │ response ends
    response ended        RESPONSE_DONE ─────request ends─────▶ OVER
                             │ upstream wants no more              ▲
                          DISCARDING ────────request ends──────────┘
                                             or too much of it comes
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = ["ILLEGAL", "MOVES", "TRANSITIONS", "Action", "IllegalMove", "Move", "State", "packed"]

ILLEGAL: Final = 0xFF
"""In the packed table: a move that cannot be made in this state."""

MOVES: Final = 16
"""Entries of a state in the packed table."""


class State(IntEnum):
    """What has happened to an exchange, as far as it decides what may happen next."""

    WAITING = 0
    """Request open; token or upstream stream not available yet."""
    WAITING_ENDED = 1
    """Request ended; token or upstream stream not available yet."""
    REPLAYABLE = 2
    """Request open and being sent; all its content so far is held."""
    REPLAYABLE_ENDED = 3
    """Request ended and being sent; all its content is held."""
    REQUESTING = 4
    """Request open and being sent; it cannot be sent again."""
    AWAITING = 5
    """Request ended and being sent; it cannot be sent again."""
    STREAMING = 6
    """Request and response open."""
    RECEIVING = 7
    """Request ended, response open."""
    RESPONSE_DONE = 8
    """Response ended, request open and wanted."""
    DISCARDING = 9
    """Response ended, request open and not wanted."""
    OVER = 10
    """Both halves have ended."""


class Move(IntEnum):
    """An event on one of the two streams. `*_END` may carry the last data or trailers."""

    REQUEST_DATA = 0
    """Downstream sent content."""
    REQUEST_END = 1
    """Downstream ended the request."""
    REQUEST_RESET = 2
    """Downstream reset the stream, or its connection is lost."""
    START = 3
    """Token and upstream stream are available."""
    COMMIT = 4
    """The held content was dropped: it was too large, or there was no room."""
    INTERIM = 5
    """Upstream sent a 1xx head."""
    RESPONSE_HEAD = 6
    """Upstream sent its final head."""
    RESPONSE_DATA = 7
    """Upstream sent content."""
    RESPONSE_END = 8
    """Upstream ended the response."""
    RESPONSE_RESET = 9
    """Upstream reset the stream."""
    UNWANTED = 10
    """Upstream reset the stream with NO_ERROR after its response."""
    UNPROCESSED = 11
    """Upstream provably did not process the request, and attempts are left."""
    DISCARDED_ENOUGH = 12
    """Downstream sent more unwanted content than is discarded."""
    FAILED = 13
    """No upstream stream was available, its connection was lost, or it was refused too often."""
    INTERNAL_ERROR = 14
    """An internal error of the sidecar."""
    EVICTED = 15
    """Memory is scarce, and the owner of the exchange holds most of it."""


class Action(IntEnum):
    """What must be done after a move."""

    FORWARD = 0
    """Forward it to the other stream."""
    HOLD = 1
    """Keep it until the request can be started."""
    DISCARD = 2
    """Acknowledge its octets and drop it."""
    REPLY = 3
    """Send a local reply downstream."""
    RESET = 4
    """Reset the downstream stream."""
    RESEND = 5
    """Look for another upstream stream."""
    NOTHING = 6
    """Nothing."""


class IllegalMove(Exception):
    """A move that this state does not allow; the engines should have prevented it."""


_S, _M, _A = State, Move, Action

_OPEN_TO_ENDED: Final = {
    _S.WAITING: _S.WAITING_ENDED,
    _S.REPLAYABLE: _S.REPLAYABLE_ENDED,
    _S.REQUESTING: _S.AWAITING,
    _S.STREAMING: _S.RECEIVING,
    _S.RESPONSE_DONE: _S.OVER,
    _S.DISCARDING: _S.OVER,
}


def _transitions() -> dict[tuple[State, Move], tuple[State, Action]]:
    table: dict[tuple[State, Move], tuple[State, Action]] = {}
    # The request goes on, and ends.
    for before, after in _OPEN_TO_ENDED.items():
        action = {_S.WAITING: _A.HOLD, _S.DISCARDING: _A.DISCARD}.get(before, _A.FORWARD)
        table[before, _M.REQUEST_DATA] = (before, action)
        table[before, _M.REQUEST_END] = (after, action)
    # A waiting request can start; a replayable one can be sent again.
    table[_S.WAITING, _M.START] = (_S.REPLAYABLE, _A.FORWARD)
    table[_S.WAITING_ENDED, _M.START] = (_S.REPLAYABLE_ENDED, _A.FORWARD)
    table[_S.REPLAYABLE, _M.COMMIT] = (_S.REQUESTING, _A.NOTHING)
    table[_S.REPLAYABLE_ENDED, _M.COMMIT] = (_S.AWAITING, _A.NOTHING)
    table[_S.REPLAYABLE, _M.UNPROCESSED] = (_S.WAITING, _A.RESEND)
    table[_S.REPLAYABLE_ENDED, _M.UNPROCESSED] = (_S.WAITING_ENDED, _A.RESEND)
    for before, committed, begun in (
        (_S.REPLAYABLE, _S.REQUESTING, _S.STREAMING),
        (_S.REQUESTING, _S.REQUESTING, _S.STREAMING),
        (_S.REPLAYABLE_ENDED, _S.AWAITING, _S.RECEIVING),
        (_S.AWAITING, _S.AWAITING, _S.RECEIVING),
    ):
        table[before, _M.INTERIM] = (committed, _A.FORWARD)
        table[before, _M.RESPONSE_HEAD] = (begun, _A.FORWARD)
    # The response goes on, and ends.
    table[_S.STREAMING, _M.RESPONSE_DATA] = (_S.STREAMING, _A.FORWARD)
    table[_S.RECEIVING, _M.RESPONSE_DATA] = (_S.RECEIVING, _A.FORWARD)
    table[_S.STREAMING, _M.RESPONSE_END] = (_S.RESPONSE_DONE, _A.FORWARD)
    table[_S.RECEIVING, _M.RESPONSE_END] = (_S.OVER, _A.FORWARD)
    # Resets.
    for before in (_S.REPLAYABLE, _S.REPLAYABLE_ENDED, _S.REQUESTING, _S.AWAITING, _S.STREAMING, _S.RECEIVING):
        table[before, _M.RESPONSE_RESET] = (_S.OVER, _A.FORWARD)
        table[before, _M.REQUEST_RESET] = (_S.OVER, _A.FORWARD)
    table[_S.RESPONSE_DONE, _M.RESPONSE_RESET] = (_S.OVER, _A.FORWARD)
    table[_S.RESPONSE_DONE, _M.UNWANTED] = (_S.DISCARDING, _A.NOTHING)
    table[_S.RESPONSE_DONE, _M.REQUEST_RESET] = (_S.OVER, _A.FORWARD)
    for before in (_S.WAITING, _S.WAITING_ENDED, _S.DISCARDING):
        table[before, _M.REQUEST_RESET] = (_S.OVER, _A.NOTHING)
    table[_S.DISCARDING, _M.DISCARDED_ENOUGH] = (_S.OVER, _A.RESET)
    # Failures.
    for before in (_S.WAITING, _S.REPLAYABLE, _S.REQUESTING):
        table[before, _M.FAILED] = (_S.DISCARDING, _A.REPLY)
    for before in (_S.WAITING_ENDED, _S.REPLAYABLE_ENDED, _S.AWAITING):
        table[before, _M.FAILED] = (_S.OVER, _A.REPLY)
    for before in (_S.REQUESTING, _S.AWAITING):
        table[before, _M.UNPROCESSED] = table[before, _M.FAILED]
    for before in (_S.STREAMING, _S.RECEIVING):
        table[before, _M.FAILED] = table[before, _M.UNPROCESSED] = (_S.OVER, _A.RESET)
    table[_S.RESPONSE_DONE, _M.FAILED] = table[_S.RESPONSE_DONE, _M.UNPROCESSED] = (_S.DISCARDING, _A.NOTHING)
    # Evictions are failures that also give up a response that is complete and not yet read.
    for before in _S:
        if (before, _M.FAILED) in table:
            table[before, _M.EVICTED] = table[before, _M.FAILED]
    table[_S.RESPONSE_DONE, _M.EVICTED] = table[_S.DISCARDING, _M.EVICTED] = (_S.OVER, _A.RESET)
    for before in _S:
        table[before, _M.INTERNAL_ERROR] = (_S.OVER, _A.NOTHING if before is _S.OVER else _A.RESET)
    return table


TRANSITIONS: Final = _transitions()
"""The next state and the action of each move. A move that is not listed is illegal."""


def packed() -> bytes:
    """Return the transitions for the hot path: an octet for each state and move (`state * MOVES + move`).

    Its upper half is the next state, its lower half the action; `ILLEGAL` stands for what is not in `TRANSITIONS`.
    """
    table = bytearray([ILLEGAL] * len(State) * MOVES)
    for (before, move), (after, action) in TRANSITIONS.items():
        table[before * MOVES + move] = after << 4 | action
    return bytes(table)

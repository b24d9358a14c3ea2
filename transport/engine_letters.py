"""Messages between programs, as far as the native engine is asked for them.

A *letter* is a message seen from one end: a send, or a receive, that a program has posted.
Invariant: the memory of a letter must live until it has ended, and is touched by nobody after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class LetterEnd(IntEnum):
    """How a letter ended."""

    DONE = 0
    DIFFERS = 1
    LOST = 2
    GIVEN_UP = 3  # by the other end
    LATE = 4
    CANCELLED = 5
    LEFT = 6
    EXCLUDED = 7


@dataclass(frozen=True, slots=True)
class LetterResult:
    """What is known of a letter; all of it is final once it is not `open`.

    `peer` and `rank` are the other end's, in the view in force then; of LOST, who was lost, in the
    view of `epoch`.  A receive from any that ended without one has zeros and -1.
    """

    open: bool
    end: LetterEnd
    peer: bytes
    rank: int
    epoch: int
    text: str


class LetterCalls:
    """The part of `transport.engine.Engine` that is about letters."""

    _native: Any
    _call: Callable[..., Any]

    def post_letter(
        self,
        sends: bool,
        peer: int | bytes,
        tag: int,
        address: int,
        count: int,
        dtype: int,
        timeout_s: float,
    ) -> int:
        return int(
            self._call(self._native.post_letter, sends, peer, tag, address, count, dtype, timeout_s)
        )

    def post_nothing(self, sends: bool, peer: int | bytes, tag: int, timeout_s: float) -> int:
        """Posts what stands for a call that was refused: the other end's differs from it."""
        return int(self._call(self._native.post_nothing, sends, peer, tag, timeout_s))

    def wait_letter(self, letter: int, timeout_s: float) -> bool:
        return bool(self._call(self._native.wait_letter, letter, timeout_s))

    def letter_result(self, letter: int) -> LetterResult:
        state, end, peer, rank, epoch, text = self._call(self._native.letter_result, letter)
        return LetterResult(state == 0, LetterEnd(end), peer, rank, epoch, text)

    def cancel_letter(self, letter: int) -> None:
        self._call(self._native.cancel_letter, letter)

    def release_letter(self, letter: int) -> None:
        self._call(self._native.release_letter, letter)

    def set_letter_notify(self, letter: int) -> None:
        self._call(self._native.set_letter_notify, letter)

"""Holds back what is said until what it rests on is durable.  No I/O.

Theory: a coordinator that says something and then forgets it, because it crashed before the write
was on disk, would say something else after its restart.  So every send that follows a write waits
until that write is synced, whatever event caused it; sends keep their order.  A record is the whole
state, so a write that is synced makes those that were issued before it needless.

Invariant: a send is released only when the last write issued before it, or a later one, is synced,
and in the order in which sends were given.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Write:
    token: int


class OutputCommit(Generic[T]):
    """A queue of sends with writes between them."""

    def __init__(self) -> None:
        self._queue: deque[_Write | tuple[T]] = deque()
        self._issued = 0
        self._synced = 0

    @property
    def held(self) -> int:
        """Sends that wait for a write."""
        return sum(isinstance(item, tuple) for item in self._queue)

    def write(self, token: int) -> None:
        """A write was issued; what is sent from now on waits for it.  Tokens only grow."""
        if token <= self._issued:
            raise ValueError(f"write {token} was issued already")
        self._issued = token
        self._queue.append(_Write(token))

    def send(self, item: T) -> None:
        self._queue.append((item,))

    def synced(self, token: int) -> None:
        """This write is durable, and with it every one before."""
        self._synced = max(self._synced, token)

    def release(self) -> list[T]:
        """Returns the sends that wait for nothing any more, in order."""
        ready: list[T] = []
        while self._queue:
            match self._queue[0]:
                case _Write(token):
                    if token > self._synced:
                        break
                case (item,):
                    ready.append(item)
            self._queue.popleft()
        return ready

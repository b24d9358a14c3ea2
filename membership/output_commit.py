"""Holds back what is said until what it rests on is durable.  No I/O.

Theory: a coordinator that says something and then forgets it, because it crashed before the write
was on disk, would say something else after its restart.  So every send that follows a write waits
until that write is synced, whatever event caused it; sends keep their order.

Invariant: a send is released only when every write issued before it is synced, and in the order in
which sends were given.
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
        self._unsynced: set[int] = set()

    @property
    def held(self) -> int:
        """Sends that wait for a write."""
        return sum(isinstance(item, tuple) for item in self._queue)

    def write(self, token: int) -> None:
        """A write was issued; what is sent from now on waits for it."""
        if token in self._unsynced:
            raise ValueError(f"write {token} is already under way")
        self._unsynced.add(token)
        self._queue.append(_Write(token))

    def send(self, item: T) -> None:
        self._queue.append((item,))

    def synced(self, token: int) -> None:
        """A write is durable; writes may be synced in any order."""
        self._unsynced.discard(token)

    def release(self) -> list[T]:
        """Returns the sends that wait for nothing any more, in order."""
        ready: list[T] = []
        while self._queue:
            match self._queue[0]:
                case _Write(token):
                    if token in self._unsynced:
                        break
                case (item,):
                    ready.append(item)
            self._queue.popleft()
        return ready

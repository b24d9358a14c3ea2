"""Runs a recorded coordinator again, offline, and says where it goes another way.

Same machine, same events, same dice: same effects.  If they differ, the machine depends on
something that is no event (a clock, an order of hashing, another version of the code), and the
first difference is where to look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pccl.base.errors import RemoteError
from pccl.membership.coordinator import Coordinator
from pccl.membership.events import Effect, Event
from pccl.membership.flight import (
    FORMAT,
    Arrived,
    Begin,
    End,
    Entry,
    Misfit,
    StatePart,
    TimePassed,
    digest,
    event,
    read_entries,
    thaw,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the machine was given, and what it wanted done about it."""

    number: int
    now_s: float
    event: Event | None  # None: time passed, or a misfit was counted
    effects: tuple[Effect, ...]
    differs: str = ""  # what is not as it was recorded


class Replay:
    """A machine that goes through a recording; iterate over `steps`, then look at the rest.

    Raises:
        RemoteError: the bytes are no recording, or one of another version.
    """

    def __init__(self, recording: Iterable[bytes], *, version: str) -> None:
        self._entries = read_entries(recording)
        begin = next(self._entries, None)
        if not isinstance(begin, Begin):
            raise RemoteError("the recording does not begin with a state")
        if begin.format != FORMAT or begin.version != version:
            raise RemoteError(
                f"this recording was made by pccl {begin.version} (format {begin.format}), "
                f"and this is pccl {version} (format {FORMAT}); replay it with that version"
            )
        state = b""
        for _ in range(begin.parts):
            part = next(self._entries, None)
            if not isinstance(part, StatePart):
                raise RemoteError("the recording ends within its opening state")
            state += part.state
        machine = thaw(state)
        if not isinstance(machine, Coordinator):
            raise RemoteError("the recorded state is no coordinator")
        self.machine = machine
        self.began_s = self.now_s = begin.now_s
        self.ended = False  # the recording ends where the coordinator was told to stop

    def steps(self, until_s: float | None = None) -> Iterator[Step]:
        """Yields every step, or those not later than `until_s` on the recorded clock; after one
        that differs the rest means nothing."""
        for number, entry in enumerate(self._entries, 1):
            at_s = getattr(entry, "now_s", self.now_s)
            if until_s is not None and at_s > until_s:
                return
            yield self._step(number, entry)

    def _step(self, number: int, entry: Entry) -> Step:
        match entry:
            case Arrived(now_s, recorded):
                self.now_s = now_s
                given = event(entry)
                effects = tuple(self.machine.handle(given, now_s))
                return Step(number, now_s, given, effects, _difference(effects, recorded))
            case TimePassed(now_s, recorded):
                self.now_s = now_s
                effects = tuple(self.machine.on_deadline(now_s))
                return Step(number, now_s, None, effects, _difference(effects, recorded))
            case Misfit():
                self.machine.dropped_frame()
                return Step(number, self.now_s, None, ())
            case End(now_s, status):
                self.now_s, self.ended = now_s, True
                same = self.machine.status(now_s) == status
                text = "" if same else "the status at the end is not the one that was recorded"
                return Step(number, now_s, None, (), text)
            case _:
                raise RemoteError("a state in the middle of the recording")

    def status(self) -> bytes:
        """Returns the status document at the step that was reached."""
        return self.machine.status(self.now_s)


def _difference(effects: tuple[Effect, ...], recorded: bytes) -> str:
    return "" if digest(effects) == recorded else "the effects are not those that were recorded"


def describe(value: Any) -> str:
    """Returns an event or an effect in one line; secrets are not hidden."""
    return repr(value)

"""What the coordinator's driver drives."""

from __future__ import annotations

from typing import Protocol

from pccl.membership.events import Effect, Event


class Machine(Protocol):
    """What the service runs: the coordinator, or a stand-in under test."""

    @property
    def deadline_s(self) -> float | None: ...
    @property
    def urgent(self) -> bool: ...  # members wait for what it decides next
    @property
    def outdated(self) -> str: ...  # why it decides nothing any more
    def handle(self, event: Event, now_s: float) -> list[Effect]: ...
    def on_deadline(self, now_s: float) -> list[Effect]: ...
    def dropped_frame(self) -> None: ...  # a connection sent what is no message; for the count

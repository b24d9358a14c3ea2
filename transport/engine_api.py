"""What an engine offers to the rooms above it, whoever provides it.

Times are seconds, addresses raw pointers whose memory the caller keeps alive.  Invariant: methods
raise errors of `pccl.base.errors` only, and may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pccl.transport.engine_events import EngineEvent, StreamOpened
from pccl.transport.engine_letters import LetterResult

MemberTuple = tuple[bytes, int, bytes, str, int, int, int, int]
"""(peer_id, incarnation, secret, host, port, host_key, first_step, group)"""

DecisionTuple = tuple[int, int, int, str]
"""(step, outcome, code, text)"""

STEP_OPEN = 0
STEP_COMMITTED = 1
STEP_FAILED = 2

STEP_LEFT_CODE = 8
"""The code of a step that failed because this process had left before it; never on the wire."""

RUNS = 0
WAITS = 1
RAISES = 2
"""`paused` of `install` and `activate`: steps start, wait at the gate, or fail to begin with
WorldTooSmall."""


# Named tuples, where one is made per operation: frozen data classes take three times as long.
class BegunStep(NamedTuple):
    """A step that passed the gate.  `epoch`, `rank` and `world_size` are of its first attempt."""

    step: int
    epoch: int
    rank: int
    world_size: int


class StepResult(NamedTuple):
    """What is known of a step; the fields after `state` are final once it is not STEP_OPEN."""

    state: int
    epoch: int
    retries: int
    contributors: tuple[bytes, ...]
    groups: tuple[int, ...]
    wire_bytes: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class EngineView:
    """The view in force here; rank is -1 while this process is no member of it.

    `members` are those of all groups and `groups` the group of each; `rank` counts within `group`,
    this process's own.
    """

    epoch: int
    rank: int
    generation: int
    paused: bool
    members: tuple[bytes, ...]
    groups: tuple[int, ...]
    group: int = 0

    @property
    def world_size(self) -> int:
        """Members of the own group."""
        return self.groups.count(self.group)


class EngineLike(Protocol):
    """What membership, collectives and the face use of an engine.  Callable from any thread."""

    leaving: bool
    """Set once this process has asked to leave: an end by the coordinator is then Left."""

    @property
    def port(self) -> int: ...
    @property
    def event_fd(self) -> int: ...
    def drain_events(self) -> Sequence[EngineEvent | StreamOpened]: ...
    def admit(
        self,
        *,
        run_id: bytes,
        incarnation: int,
        secret: bytes,
        generation: int,
        host: str,
        port: int,
        heartbeat_s: float,
        lease_s: float,
    ) -> None: ...
    def prepare_view(self, generation: int, epoch: int, members: Sequence[MemberTuple]) -> None: ...
    def hold(self, generation: int, epoch: int) -> int: ...
    def entry_within(self, name: str) -> int: ...
    def activate(
        self,
        generation: int,
        epoch: int,
        members: Sequence[MemberTuple],
        step: int,
        name: str,
        paused: int = RUNS,
    ) -> None: ...
    def cancel_plan(self, generation: int, epoch: int) -> None: ...
    def install(
        self,
        generation: int,
        epoch: int,
        members: Sequence[MemberTuple],
        paused: int,
        committed_below: int,
        decisions: Sequence[DecisionTuple],
    ) -> None: ...
    def exclude(self, generation: int, epoch: int, text: str, code: int) -> None: ...
    def fail(self, code: str, text: str) -> None: ...
    def view(self) -> EngineView: ...
    def begin_step(self, name: str, timeout_s: float) -> BegunStep: ...
    def post_all_reduce(
        self,
        step: int,
        tag: int,
        input_address: int,
        output_address: int,
        count: int,
        dtype: int,
        op: int,
        weight: float,
        deterministic: bool,
        algorithm: int,
        last: bool = False,
        codec: int = 0,
        left_out: bool = False,
    ) -> None: ...
    def post_collective(
        self,
        step: int,
        tag: int,
        collective: int,
        input_address: int,
        output_address: int,
        count: int,
        dtype: int,
        op: int,
        weight: float,
        deterministic: bool,
        root: int | bytes,
        uneven: bool,
        send_counts: Sequence[int],
        receive_counts: Sequence[int],
        last: bool = False,
    ) -> None: ...
    def seal(self, step: int) -> None: ...
    def wait_step(self, step: int, timeout_s: float) -> bool: ...
    def step_result(self, step: int) -> StepResult: ...
    def release_step(self, step: int) -> None: ...
    def propose_failure(self, step: int, code: int, text: str, after_s: float = 0.0) -> None: ...
    def set_notify(self, step: int) -> None: ...
    def post_letter(
        self,
        sends: bool,
        peer: int | bytes,
        tag: int,
        address: int,
        count: int,
        dtype: int,
        timeout_s: float,
    ) -> int: ...
    def post_nothing(self, sends: bool, peer: int | bytes, tag: int, timeout_s: float) -> int: ...
    def wait_letter(self, letter: int, timeout_s: float) -> bool: ...
    def letter_result(self, letter: int) -> LetterResult: ...
    def cancel_letter(self, letter: int) -> None: ...
    def release_letter(self, letter: int) -> None: ...
    def set_letter_notify(self, letter: int) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

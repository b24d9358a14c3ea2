"""What a program may choose for a group: `pg_options` of `init_process_group`, `new_group`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from pccl.pytorch.errors import Misused

LANES_MAX = 64
JOB_CHARACTERS_MAX = 200
ELASTIC_ONLY = frozenset(
    "coordinator job min_world start_world peer_group on_loss rejoin check_state failures_max "
    "straggler_s drain_on_sigterm_s".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Choices for one group; a group made without any takes those of the default group.

    Attributes:
        host: the address of this machine by which the other ranks reach it, for the data and, on
            the group's rank 0, for the coordinator.  None: the loopback address if the store that
            the ranks meet at is there, else the address that leads to that store.
        lanes: connections per pair of ranks; 0 chooses.
        deterministic: reduces in rank order, so that a run can be repeated bit by bit; else
            contributions are added as they arrive.  All ranks hold the same bits either way.
        coordinator_grace_s: after the process of the group's rank 0 has ended, which runs the
            coordinator, the others raise PeerLost within so many seconds, 3 if this is None.  In
            an elastic group: how long to go on without a coordinator while no step gets done; None
            leaves that to the coordinator's profile.
        ticket: of a secured run (docs/SECURITY.md), whose coordinator runs by itself: for
            `init_method="pccl://..."` and elastic groups.  None: PCCL_TICKET; "": none.
        elastic: the group lives on while members die and join (docs/TORCH.md); what follows is for
            such groups only.
        coordinator: host:port[,host:port] of the `pccl coordinator`; None if the group is made with
            `init_method="pccl://..."`, which says it, and the job and `min_world` as well.
        job: whose members meet.  A coordinator serves one job at a time: members of another wait at
            their entry until it is over, so give each job a coordinator of its own.
        min_world: training goes on only with so many members; alike on all.
        start_world: it begins only with so many; alike on all.
        peer_group: which part of a replica this process is (`elastic_fsdp`); members of one peer
            group reduce among themselves, a step is committed by all.
        on_loss: what becomes of a training step during which a member was lost: "replay" reduces
            the others' gradients again, "discard" gives it up on all members.
        rejoin: a member that was put out of the run, for example since it was stopped for long,
            comes in again and receives the state; else it raises.
        check_state: members' states are compared whenever somebody comes in or is lost, and those
            that differ from most are healed; costs a pass over model and optimizer.
        failures_max: so many training steps may fail one after the other; then commit raises.
        straggler_s: who lets the others wait for so long is excluded, and may come in again.
        drain_on_sigterm_s: on SIGTERM the member leaves without a step being aborted, within this.
    """

    host: str | None = None
    lanes: int = 0
    deterministic: bool = False
    coordinator_grace_s: float | None = None
    ticket: str | None = field(default=None, repr=False)  # whoever knows it can join
    elastic: bool = False
    coordinator: str | None = None
    job: str = "default"
    min_world: int = 1
    start_world: int = 1
    peer_group: int = 0
    on_loss: Literal["replay", "discard"] = "replay"
    rejoin: bool = True
    check_state: bool = True
    failures_max: int = 20
    straggler_s: float | None = None
    drain_on_sigterm_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("elastic", "rejoin", "check_state", "deterministic"):
            said = getattr(self, name)
            if not isinstance(said, bool):  # a text as "false" would count as true
                raise Misused(f"{name} must be True or False, not {said!r}")
        if not self.elastic:
            self._refuse_elastic_only()
        if self.on_loss not in ("replay", "discard"):
            raise Misused(f"on_loss must be 'replay' or 'discard', not {self.on_loss!r}")
        if min(self.min_world, self.start_world) < 1 or self.failures_max < 0:
            raise Misused("min_world and start_world are at least 1, failures_max at least 0")
        if not 0 < len(self.job) <= JOB_CHARACTERS_MAX:
            raise Misused(f"job has 1 to {JOB_CHARACTERS_MAX} characters")
        if self.peer_group < 0:
            raise Misused(f"peer_group must not be negative: {self.peer_group}")
        for name in ("coordinator_grace_s", "straggler_s", "drain_on_sigterm_s"):
            seconds = getattr(self, name)
            if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
                raise Misused(f"{name} must be finite and positive, not {seconds!r}")
        if self.ticket is not None and not isinstance(self.ticket, str):
            raise Misused("ticket must be the text that `pccl ca ticket` printed")
        if self.host is not None and not (isinstance(self.host, str) and self.host):
            raise Misused(f"host must be an address of this machine, not {self.host!r}")
        if not 0 <= self.lanes <= LANES_MAX:
            raise Misused(f"lanes must be within 0 to {LANES_MAX}, not {self.lanes!r}")

    def _refuse_elastic_only(self) -> None:
        for one in fields(self):
            if one.name in ELASTIC_ONLY and getattr(self, one.name) != one.default:
                raise Misused(f"{one.name} is for elastic groups: Options(elastic=True, ...)")


def check_options(given: object) -> Options | None:
    """Returns `pg_options` as Options.  Raises Misused if they are those of another backend."""
    if given is None or isinstance(given, Options):
        return given
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    raise Misused(f"pg_options of the pccl backend are pccl.pytorch.Options, not {kind}")

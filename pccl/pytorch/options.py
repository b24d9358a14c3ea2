"""What a program may choose for a group: `pg_options` of `init_process_group`, `new_group`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pccl.pytorch.errors import Misused

LANES_MAX = 64


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
            coordinator, the others raise PeerLost within so many seconds.
    """

    host: str | None = None
    lanes: int = 0
    deterministic: bool = False
    coordinator_grace_s: float = 3.0

    def __post_init__(self) -> None:
        if self.host is not None and not (isinstance(self.host, str) and self.host):
            raise Misused(f"host must be an address of this machine, not {self.host!r}")
        if not 0 <= self.lanes <= LANES_MAX:
            raise Misused(f"lanes must be within 0 to {LANES_MAX}, not {self.lanes!r}")
        if not (math.isfinite(self.coordinator_grace_s) and self.coordinator_grace_s > 0):
            raise Misused(
                f"coordinator_grace_s must be finite and positive, not {self.coordinator_grace_s!r}"
            )


def check_options(given: object) -> Options | None:
    """Returns `pg_options` as Options.  Raises Misused if they are those of another backend."""
    if given is None or isinstance(given, Options):
        return given
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    raise Misused(f"pg_options of the pccl backend are pccl.pytorch.Options, not {kind}")

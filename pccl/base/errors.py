"""Every error pccl raises on purpose.

The class says whose fault it is, `retryable` what the caller may do about it, and the text what to
do next.  `except pccl.PcclError` catches them all; none of them leaves the library half-changed.

    PcclError
    ├── UsageError           the caller broke a documented precondition; nothing was sent
    │   ├── Closed           used after close(); connect again
    │   └── Forked           used in a fork of the process that connected; connect in the child
    ├── RemoteError          the other end broke the protocol; its connection is closed
    ├── ConnectError         no coordinator, or one that will not have us (also a ConnectionError)
    ├── DeadlineExceeded     nothing failed, but time ran out (also a TimeoutError)   [retryable]
    │   └── CannotCatchUp    the shared state changes faster than it comes           [retryable]
    ├── PeerLost             the other end of a message is no member any more         [retryable]
    ├── StaleView            the operation belongs to an older epoch                  [retryable]
    ├── StepFailed           all members decided that this step cannot succeed
    │   ├── DescriptorMismatch   peers posted different operations under one tag
    │   ├── CorruptResult        peers hold different results, attempt after attempt
    │   ├── ViewChanged          the members changed, and the operation needs them  [retryable]
    │   ├── WorldTooSmall        fewer members than min_world, and nobody waits     [retryable]
    │   └── Excluded             the others did not wait any longer for this peer   [retryable]
    ├── NonFiniteContribution   somebody's contribution holds an Inf or a NaN; nothing was applied
    ├── Left                 this process has left the run, as it had asked to
    ├── Evicted              the run went on without this process; connect again
    ├── OutOfMemory          the native core found no memory; this process is out (a MemoryError)
    └── CoordinatorLost      no coordinator for longer than the grace period
        └── OutcomeUnknown   ... while a step's outcome had still to be decided

Invariant: errors that end a step on one member end it with the same class on every member, except
Excluded, Left, Evicted, OutOfMemory, CoordinatorLost and the DescriptorMismatch of a newcomer that
is put out, which are about this process alone.
"""

from collections.abc import Sequence
from typing import ClassVar


class PcclError(Exception):
    """Base of everything pccl raises on purpose."""

    retryable: ClassVar[bool] = False
    """Whether doing the same again may succeed."""


class UsageError(PcclError):
    """The caller broke a documented precondition; fix the code.  Nothing was sent or changed."""


class Closed(UsageError):
    """The communicator was used after it was closed."""

    def __init__(self, reason: str = "the communicator is closed; connect again") -> None:
        super().__init__(reason)


class Forked(UsageError):
    """The communicator was used in a fork of the process that made it."""

    def __init__(
        self,
        reason: str = (
            "this communicator belongs to the parent process; call pccl.connect() in the child, "
            "or start the child with the 'spawn' method"
        ),
    ) -> None:
        super().__init__(reason)


class RemoteError(PcclError):
    """The other end broke the protocol; its connection is closed and everybody else goes on."""

    def __init__(self, reason: str, *, peer: str | None = None) -> None:
        super().__init__(reason if peer is None else f"peer {peer}: {reason}")
        self.reason = reason
        self.peer = peer


class ConnectError(PcclError, ConnectionError):
    """No coordinator answered, or the one that did will not have this process."""


class DeadlineExceeded(PcclError, TimeoutError):
    """Nothing failed, but the time the caller gave ran out; what was waited for may still come."""

    retryable = True


class CannotCatchUp(DeadlineExceeded):
    """A newcomer's shared state was still behind the members' when its time was over.

    Nobody has waited for it longer than `hold_s` at a time, it is in no view, and what has come is
    in its memory: the next step tries again from there.

    Attributes:
        pace_bytes_per_s: at which the state came, as if nothing paced it; 0: nothing came.
        needed_bytes_per_s: at which it would have come in.
    """

    def __init__(self, reason: str, *, pace_bytes_per_s: float, needed_bytes_per_s: float) -> None:
        super().__init__(reason)
        self.pace_bytes_per_s = pace_bytes_per_s
        self.needed_bytes_per_s = needed_bytes_per_s


class PeerLost(PcclError):
    """The other end of a message was lost, or has left: the view after `epoch` is without it.  For
    a receive from any, one of those that might have sent was."""

    retryable = True

    def __init__(self, peer: str, *, epoch: int) -> None:
        super().__init__(f"peer {peer} was lost in epoch {epoch}; retry under the next view")
        self.peer = peer
        self.epoch = epoch


class StaleView(PcclError):
    """The operation belongs to an older epoch; retry it under the present view."""

    retryable = True

    def __init__(self, *, epoch: int, current_epoch: int) -> None:
        super().__init__(
            f"the operation belongs to epoch {epoch}, the view is at epoch {current_epoch}; "
            "retry it under the present view"
        )
        self.epoch = epoch
        self.current_epoch = current_epoch


class StepFailed(PcclError):
    """All members decided that a step cannot succeed; every input is as it was before the step."""

    def __init__(self, reason: str, *, step: int | None = None) -> None:
        super().__init__(reason if step is None else f"step {step}: {reason}")
        self.step = step


class DescriptorMismatch(StepFailed):
    """Peers posted different operations under one tag; the text names both peers, what each posted,
    and which of them this process is.  Make shape, dtype, op and tag agree on all peers.

    Raised on all members; but a newcomer that alone differs from the members is *put out*, as the
    text then says: the members run the step again without it and raise nothing.  Its inputs are as
    before, and it is in no view; a later step comes in again."""

    def __init__(self, reason: str, *, step: int | None = None, peers: Sequence[str] = ()) -> None:
        super().__init__(reason, step=step)
        self.peers = tuple(peers)


class CorruptResult(StepFailed):
    """Peers computed different results attempt after attempt: suspect memory or a processor."""


class ViewChanged(StepFailed):
    """The members changed during a step with an operation whose shape or root depends on them:
    every input is as it was.  Look at the view again and post what fits it."""

    retryable = True


class NonFiniteContribution(PcclError):
    """Somebody's contribution holds an Inf or a NaN; raised on every member, with nothing applied
    and every input as it was."""


class WorldTooSmall(StepFailed):
    """Fewer members than `min_world` are left, and the run was told to raise instead of waiting.
    A later step runs again as soon as enough peers have come in."""

    retryable = True


class Excluded(StepFailed):
    """The others did not wait any longer for this peer, which was too slow; what became of its open
    steps, they know.  It stays in the run as a newcomer: bring its state up to date (`sync_state`)
    and begin the next step, at which it comes in again."""

    retryable = True


class Left(PcclError):
    """This process has left the run, as it had asked to by `leave()`; all its earlier steps are
    done.  A `with pccl.connect(...)` block ends quietly by it."""


class Evicted(PcclError):
    """The run went on without this process (it was silent or unreachable); connect again."""


class OutOfMemory(PcclError, MemoryError):
    """The native core found no memory in the middle of something.  It has ended, with the inputs of
    open steps given back, and the others go on without this process; connect again."""


class CoordinatorLost(PcclError):
    """No coordinator could be reached for longer than the grace period; connect again."""


class OutcomeUnknown(CoordinatorLost):
    """The coordinator was lost while a step had to be decided: other members may hold it as
    committed.  Restore from shared state before going on."""


# Tracebacks and help() name them as programs import them.
for _kind in list(globals().values()):
    if isinstance(_kind, type) and issubclass(_kind, PcclError):
        _kind.__module__ = "pccl"
del _kind

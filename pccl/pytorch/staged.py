"""What stands before a group's calls: tensors of a device are replaced by twins on the host.

    allreduce([cuda tensor]) ──> allreduce([its twin]), once the copy is there ──> copied back

Invariant: a call with CPU tensors only, on a group that has nothing queued, passes straight
through; outputs on a device are written when the operation has succeeded and not before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import torch

from pccl.pytorch.group_base import GroupBase
from pccl.pytorch.group_collectives import GroupCollectives
from pccl.pytorch.group_messages import GroupMessages
from pccl.pytorch.launcher import Launcher, Pending
from pccl.pytorch.ordering import Copies, await_tensors
from pccl.pytorch.run import Run
from pccl.pytorch.staging import Landing, Layer, Pool, Trip
from pccl.pytorch.work import PcclWork

Tensor = torch.Tensor
DRAIN_S: Final = 60.0
MESSAGES: Final = frozenset(("send", "recv", "recv_anysource", "recvAnysource"))

# What each argument that holds tensors is: (i)nput, (o)utput, (u)pdated in place.  `R` is updated
# on the root and an input elsewhere, `B` is an input on the root and an output elsewhere.
ROLES: Final[dict[str, str]] = {
    **dict.fromkeys(("allreduce", "allreduce_coalesced"), "u"),
    **{"reduce": "R", "broadcast": "B", "barrier": ""},
    **{"send": "i", "recv": "o", "recv_anysource": "o", "recvAnysource": "o"},
    **dict.fromkeys(("allgather", "allgather_coalesced", "_allgather_base"), "oi"),
    **dict.fromkeys(("all_gather_single", "all_gather_single_coalesced"), "oi"),
    **dict.fromkeys(("allgather_into_tensor_coalesced", "gather", "scatter"), "oi"),
    **dict.fromkeys(("reduce_scatter", "reduce_scatter_single", "_reduce_scatter_base"), "oi"),
    **dict.fromkeys(("reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced"), "oi"),
    **dict.fromkeys(("all_to_all_single", "alltoall_base", "alltoall"), "oi"),
}


class HostGroup(GroupCollectives, GroupMessages):
    """The calls of a group with nothing before them; the launcher's thread makes them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._timeout_s = 0.0
        self._batch = None

    def call(self, name: str, args: tuple[Any, ...], timeout_s: float) -> PcclWork:
        self._timeout_s = timeout_s
        work: PcclWork = getattr(self, name)(*args)
        return work


class Staging:
    """Makes calls of one group whose tensors lie on a device."""

    def __init__(
        self, run: Run, layer: Layer, pool: Pool, host: type[HostGroup] = HostGroup
    ) -> None:
        """
        Args:
            host: makes the calls, with twins for the tensors.
        """
        self._run, self._layer, self._pool = run, layer, pool
        self._host = host(run)
        self.launcher = Launcher(run.place.group_id)
        run.queues.append(self.launcher)

    def owns(self, tensor: Tensor) -> bool:
        return self._layer.owns(tensor)

    def trip(self) -> Trip:
        """Raises Misused where nothing can be copied now."""
        return Trip(self._layer, self._pool)

    def landing(self, tensors: list[Tensor]) -> Landing:
        return Landing(self._layer, tensors)

    def concerns(self, args: tuple[Any, ...]) -> bool:
        """Says whether a call cannot pass straight through."""
        tensors = [tensor for arg in args for tensor in flat(arg)]
        if any(tensor.is_sparse for tensor in tensors):  # made of calls that come here themselves
            self.launcher.drain(DRAIN_S)
            return False
        return not self.launcher.idle or any(map(self._layer.owns, tensors))

    def call(self, name: str, args: tuple[Any, ...], timeout_s: float) -> PcclWork:
        """Queues a call.

        Raises:
            PcclDistError: the group is over, or an argument cannot be staged; nothing is queued.
        """
        run, host = self._run, self._host
        run.check(name)
        roles = roles_of(name, args, run.place.rank)
        trip = self.trip()
        staged = list(args)
        for at, role in enumerate(roles):
            twins = trip.twins([*flat(args[at])], read=role in "iu", written=role in "ou")
            staged[at] = alike(args[at], iter(twins))
        trip.depart()
        result = written_of(name, args, run.place.rank)
        result = result or [tensor for at in range(len(roles)) for tensor in flat(args[at])]
        landing = self.landing(result)

        def make() -> PcclWork:
            trip.arrived()
            return host.call(name, tuple(staged), timeout_s)

        pending = Pending(name, trip.marks, make, run.translate, timeout_s)
        finishes = [pending.settle, lambda: trip.land(landing)]
        work = PcclWork(run, name, (pending,), result, finishes, [landing])
        self.launcher.submit(pending)
        return work


class StagedCalls(GroupBase):
    """The methods of a group as torch calls them; to stand before those that do the work."""

    _staging: Staging | None
    _copies: Copies

    def _await_order(self, name: str, args: tuple[Any, ...]) -> None:
        """Waits for what else uses the memory of a call's tensors, before they are copied."""
        run = self.run
        roles = roles_of(name, args, run.place.rank)
        tensors = [
            (t, role in "ou") for role, arg in zip(roles, args, strict=False) for t in flat(arg)
        ]
        self._copies.settle([tensor for tensor, _ in tensors])
        session = run.communicator.session
        await_tensors(session, tensors, self._timeout_s, lambda error: run.translate(error, name))


def _door(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **named: Any) -> Any:
        staging: Staging | None = self._staging
        plain = getattr(super(StagedCalls, self), name)
        ordered = name not in MESSAGES
        busy = ordered and (self._copies.some or self.run.busy)
        if staging is None and not busy:
            return plain(*args, **named)
        given = positional(name, args, named) if named else args
        if busy:
            self._await_order(name, given)
        if staging is None:
            return plain(*given)
        if not staging.concerns(given):
            return plain(*given)
        work = staging.call(name, given, self._timeout_s)
        if ordered:
            self._copies.add(work, written_of(name, given, self.run.place.rank))
        return self._noted(work)

    call.__name__ = name
    return call


for _name in ROLES:
    setattr(StagedCalls, _name, _door(_name))


# ---- decisions


def roles_of(name: str, args: tuple[Any, ...], rank: int) -> str:
    """Returns what each tensor argument is for this rank."""
    role = ROLES[name]
    if role not in ("R", "B"):
        return role[: len(args)]
    at_root = int(args[1].rootRank) == rank
    return {("R", True): "u", ("R", False): "i", ("B", True): "i", ("B", False): "o"}[role, at_root]


def written_of(name: str, args: tuple[Any, ...], rank: int) -> list[Tensor]:
    """Returns the tensors that a call writes."""
    roles = roles_of(name, args, rank)
    return [t for role, arg in zip(roles, args, strict=False) if role in "ou" for t in flat(arg)]


def flat(value: Any) -> Iterator[Tensor]:
    """The tensors of an argument: one, a list, or a list of lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)


def alike(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Returns an argument of the same form with other tensors."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, list | tuple):
        return [alike(item, tensors) for item in value]
    return value


@cache
def _signature(name: str) -> inspect.Signature:
    return inspect.signature(getattr(HostGroup, name))


def positional(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Returns the arguments of a call in their order; those left out have their defaults."""
    bound = _signature(name).bind(None, *args, **named)
    bound.apply_defaults()
    return bound.args[1:]


# ---- the devices of this process


@cache
def _cuda() -> tuple[Layer, Pool]:
    from pccl.pytorch.cuda import CudaLayer

    layer = CudaLayer()
    return layer, Pool(layer.page_locked)


def staging_of(run: Run, host: type[HostGroup]) -> Staging | None:
    """Returns what a group needs for tensors of a device; None where torch knows no such device."""
    backends: Any = torch.backends
    if not backends.cuda.is_built():
        return None
    return Staging(run, *_cuda(), host)

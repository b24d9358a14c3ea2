"""Parameters θ and outer momentum, which all members hold alike, and how newcomers get them.

They lie in one place of memory for the life of the optimizer, as a SharedState whose revisions are
the reductions: members give them to newcomers beside the run, with what was committed since.

Invariant: the memory changes by `changed` (a committed reduction), by `bring` (a newcomer is given
all of it), by `load` (a state is loaded, before this peer comes in), and in no other way;
revision r holds r reductions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccl.base.errors import Excluded, RemoteError, UsageError
from pccl.base.log import get_logger
from pccl.communicator import Communicator
from pccl.state.catching_up import HOLD_S_MAX
from pccl.state.keeper import goes_on, lend_keeper, take_back
from pccl.state.shared import SharedState
from pccl.state_transfer import ENTRY, Held, bring

OUTER_STEPS = 0  # its place in the counters
LINEAGE = 1  # members are asked at one step, and their root is believed, not their history
PACE = 0.5  # of a donor's time: while peers compute the ways are idle, and steps go first
MEET_S = 5.0  # for the coordinator to tell a newcomer who the members are
HEADER = 2  # of results: the section, and whether anything was changed
_log = get_logger("state")

Change = Callable[..., None]


class SharedParameters:
    """θ and momentum of one optimizer.

    Args:
        theta, momentum: one f32 vector per section; empty where there is no momentum.  Borrowed.
        counters: int64, of which OUTER_STEPS counts reductions; borrowed.
        change: `change(section, *results)` applies the results of a reduction to them, as NumPy
            arrays or tensors; it writes nothing before it can raise no more.
        join_timeout_s: how long members wait for this peer, as a newcomer, at most.
    """

    def __init__(
        self,
        comm: Communicator,
        theta: Sequence[Tensor],
        momentum: Sequence[Tensor],
        counters: Any,
        change: Change,
        join_timeout_s: float = HOLD_S_MAX,
    ) -> None:
        self.arrays: dict[str, Tensor] = {}
        for section, (values, velocity) in enumerate(zip(theta, momentum, strict=True)):
            self.arrays[f"diloco.parameters.{section}"] = values
            self.arrays[f"diloco.momentum.{section}"] = velocity
        self.counters = {"diloco.counters": counters}
        self._counts = counters
        self._comm = comm
        self._change = change
        kept = {name: array for name, array in self.arrays.items() if array.numel()}
        self.state = SharedState(kept, apply=self._replay, pace=PACE)
        self.state.hold_bytes = sum(values.numel() * 4 for values in theta)
        self.state.hold_s_max = self._join_timeout_s = join_timeout_s
        self._keeper = lend_keeper(comm.session, self.state, ENTRY)
        self._exclusions = comm.session.exclusions  # when this peer held all of it last

    def close(self) -> None:
        """Gives to nobody any more."""
        if self._keeper is not None:
            take_back(self._comm.session, self._keeper)

    def outside(self) -> None:
        """The others go on without this peer."""
        self.state.bind()

    def check_inside(self) -> None:
        """Raises Excluded: the others went on without this peer since it held all of it, whoever
        was told so; a collective of the program's own, for instance."""
        if self._was_out():
            raise Excluded("this peer was put out of the view, by what its program did elsewhere")

    def _was_out(self) -> bool:
        session = self._comm.session
        session.in_flight()  # settles what is decided
        return session.exclusions > self._exclusions

    def bring(self, rest: Mapping[str, Any], synced: bool, timeout_s: float | None) -> None:
        """An entry: newcomers come in.  Raises as `sync_state`.

        What a newcomer has fetched beside the run it knows when the step has begun; it lacks the
        counters then, and `rest`, which the program may change at any time.

        Args:
            synced: whether this peer holds all of it.
        """

        session = self._comm.session

        def held() -> Held:
            if synced:
                return Held.NOTHING if self._was_out() else Held.ALL
            if self.state.torn:
                _log.warning("this peer holds parts of θ only, of a fetch that broke off")
                return Held.TORN
            fetched = self._keeper is not None and self.state.lineage != 0
            if not self.state.synced and not fetched:
                return Held.NOTHING
            if len(set(session.engine.view().groups)) > 1:
                return Held.NOTHING  # all groups run the same steps, and others fetch nothing
            self._counts[OUTER_STEPS] = self.state.revision  # if no member is left to tell it
            return Held.BULK

        def digest() -> int:
            return int.from_bytes(self.state.root_in_force()[:8], "little")

        was_written = bring(
            self._comm,
            self.arrays,
            {**self.counters, **rest},
            held,
            digest=digest,
            late=lambda: _refuse_shards(self._comm, session.engine.view().groups),
            hold_s=self._join_timeout_s,
            timeout_s=timeout_s,
        )
        if was_written:
            with self.state.writing():  # while nobody was given any: say that it has changed
                pass
        self.state.adopt(int(self._counts[OUTER_STEPS]), LINEAGE)
        self._exclusions = self._comm.session.exclusions

    def changed(self, step: int, section: int, tokens: int, *results: Any) -> None:
        """Applies what a committed step has brought; nothing if nobody had any tokens.  Raises as
        `change`, with nothing changed."""
        brought = results if tokens else ()
        header = np.array([section, len(brought)], np.int64)

        def change() -> None:
            if brought:
                self._change(section, *brought)

        self.state.advance_by(step, change, (header, *brought))

    def _replay(self, _: Any, header: Any, *results: Any) -> None:
        if header.shape != (HEADER,) or int(header[1]) != len(results):
            raise RemoteError("a reduction of another form than is reduced here")
        if results:
            self._change(int(header[0]), *results)

    def load(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Copies over all of it, and over a peer's `own` arrays, what `state` has by their names.

        Raises:
            UsageError: it has others, or of other shapes; nothing was changed.
        """
        targets = {**self.arrays, **self.counters, **own}
        if set(targets) != set(state):
            difference = min(set(targets) ^ set(state))
            raise UsageError(f"the state is of another method or model: {difference!r}")
        for name, target in targets.items():
            if tuple(as_tensor(state[name]).shape) != tuple(target.shape):
                raise UsageError(f"{name!r} has another shape in the state than in this model")
        with self.state.writing():
            for name, target in targets.items():
                as_tensor(target).copy_(as_tensor(state[name]))


def refuse_late_shards(comm: Communicator) -> None:
    """The parts of a replica may come in at different entries, with different parameters, and would
    wait for one another inside the model for ever; those of one seat come in together.

    Here they disturb nobody yet.  Who the members are may not be known in MEET_S; then it is as the
    peer comes in (`bring`).

    Raises:
        UsageError: this peer comes without a seat to a run of several peer groups that has begun;
            it has left.
    """
    session = comm.session
    if session.engine.view().rank >= 0 or not goes_on(session):
        return
    session.agent.wait_until(lambda standing: bool(standing.met), MEET_S)
    groups = (member.group for member in session.agent.standing.met)
    _refuse_shards(comm, (session.agent.config.group, *groups))


def _refuse_shards(comm: Communicator, groups: Iterable[int]) -> None:
    if len(set(groups)) > 1 and comm.session.agent.config.seat == 0:
        comm.close()
        raise UsageError(
            "a replica that joins a sharded run (peer_group=) that has begun needs a seat, so that "
            "its parts come in together: give all of them one seat=, which no other replica has; "
            "this process has left the run"
        )


def as_tensor(array: Any) -> Tensor:
    """Views what came of a reduction, here or replayed, as a tensor."""
    return torch.as_tensor(array, device="cpu")  # wherever the program makes its own

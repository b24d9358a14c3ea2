"""How steps run between modelled peers: contributions as sets, in place, by two plans.

The contribution of a peer is a number with a one in a digit of its own (`history.unit`), so the
sum over exactly the contributors is the one right result, and whatever is lost, counted twice or
taken from another attempt shows as another number.  With the plan *exchange* everybody sends its
contribution to everybody and folds; with *direct* the participant of each rank folds one shard and
sends it out.  Results are written over the input, which is kept for the undo.

Frames are said again when a link comes back, so everything here may be heard twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pccl.transport.native_frames import (
    NO_STEP,
    Suspect,
    SuspectCode,
    Waiting,
    WaitKind,
    WaitOn,
)
from tests.sim.history import scale, unit

if TYPE_CHECKING:
    from tests.sim.engine import SimEngine
    from tests.sim.peer_process import PeerProcess
    from tests.sim.world import World

DONES_KEPT: Final = 64
FLIPPED_BIT: Final = 800  # and those above: in nobody's digit
SHAPE_BIT: Final = 780
MANIFESTS: Final = tuple(bytes((shape,)) + bytes(15) for shape in range(4))

# A frame: (kind, sender, epoch, step, shard, value, extra)
Frame = tuple[str, int, int, int, int, Any, Any]


class Attempt:
    """A step of the program, in its present attempt."""

    __slots__ = (
        "accused",
        "began_s",
        "begun_with",
        "bound",
        "buffer",
        "complete",
        "contributions",
        "epoch",
        "flipped",
        "given",
        "input",
        "manifest",
        "mates",
        "name",
        "participants",
        "posted",
        "posts",
        "rank",
        "ready",
        "said",
        "sealed",
        "shape",
        "started",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.began_s = 0.0
        self.epoch = 0
        self.started = self.posted = self.sealed = self.complete = False
        self.accused = self.flipped = False
        self.shape = 0
        self.manifest = MANIFESTS[0]
        self.participants: tuple[int, ...] = ()  # of all groups: whose DONEs it takes
        self.mates: tuple[int, ...] = ()  # those of the own group: who reduce
        self.begun_with: tuple[int, ...] = ()  # the first attempt's
        self.bound = False  # to those: among others the operation means nothing
        self.rank = 0
        self.posts: set[int] = set()  # whose OPEN is here
        self.input = 0  # what the program gave
        self.given = 0  # what the present attempt found in the buffer
        self.buffer: list[int] = []  # by shard: the own contribution, then the result
        self.ready: set[int] = set()  # shards whose result is in the buffer
        self.contributions: dict[int, dict[int, int]] = {}  # shard: sender: value
        self.said = 0  # the own shard's result; said again it has the hash of the first time

    @property
    def misplaced(self) -> bool:
        return self.bound and self.mates != self.begun_with


class DataPlane:
    def __init__(self, world: World, peer: PeerProcess, engine: SimEngine) -> None:
        self.world = world
        self.peer = peer
        self.engine = engine
        self.open: dict[int, Attempt] = {}
        self.early: dict[tuple[int, int], list[Frame]] = {}
        self.sent_dones: list[Frame] = []
        self.dones: dict[tuple[int, int], set[int]] = {}  # who has said so
        self.progress = 0
        self.flips = 0  # results to be damaged
        self.direct = world.script.direct

    # ------------------------------------------------------------ the program

    def post(self, step: int, shape: int, manifest: bytes, *, bound: bool = False) -> None:
        attempt = self.open.get(step)
        if attempt is None:
            return  # it has failed meanwhile
        attempt.posted, attempt.shape, attempt.manifest = True, shape, manifest
        attempt.bound = bound
        if bound:
            self.engine.machine.bind(step)
        attempt.input = unit(self.engine.incarnation)
        attempt.buffer = [attempt.input]
        if attempt.started and not self.is_fenced():
            self._run(step, attempt)

    def seal(self, step: int) -> None:
        attempt = self.open.get(step)
        if attempt is None:
            return
        attempt.sealed = True
        self.engine.perform(self.engine.machine.seal(step, attempt.manifest))
        self._complete_if_ready(step, attempt)

    # ------------------------------------------------------------ the machine's effects

    def start(self, step: int, epoch: int) -> None:
        attempt = self.open[step]
        attempt.started = True
        attempt.complete = attempt.accused = attempt.flipped = False
        attempt.epoch = epoch
        attempt.participants = tuple(
            [m.incarnation for m in self.engine.members if m.first_step <= step]
        )
        attempt.mates = tuple(
            [
                m.incarnation
                for m in self.engine.members
                if m.first_step <= step and m.group == self.peer.group
            ]
        )
        attempt.begun_with = attempt.begun_with or attempt.mates
        attempt.rank = attempt.mates.index(self.engine.incarnation)
        attempt.contributions.clear()
        attempt.ready.clear()
        attempt.posts.clear()
        if attempt.posted:
            self._run(step, attempt)

    def undo(self, step: int) -> None:
        attempt = self.open[step]
        attempt.started = attempt.complete = False
        if attempt.posted:
            attempt.buffer = self.undo_copy(attempt)
            self.world.history.restored(self.peer, step, attempt.buffer)

    def undo_copy(self, attempt: Attempt) -> list[int]:
        return [attempt.input]

    def committed(self, step: int) -> None:
        attempt = self.open.pop(step)
        assert attempt.complete, f"{self.peer} committed step {step} without a result"
        assert not attempt.misplaced, f"{self.peer} committed step {step} among others than its own"
        self.world.note("{} commits step {}", self.peer, step)
        if not self.engine.installing:
            self.world.history.all_done(self.peer, attempt.epoch, step, attempt.participants)
        # Damage to the one copy that is left after a flush is nothing that anybody could see.
        alone = attempt.flipped and self.engine.installing
        self.world.history.decided(
            *(self.peer, step, "commit", attempt.mates, tuple(attempt.buffer)), alone=alone
        )
        self.dones.pop((attempt.epoch, step), None)
        self.peer.program.decided(step)
        if not self.engine.installing:
            self.peer.committed_itself(in_older_view=attempt.epoch < self.engine.epoch)

    def failed(self, step: int) -> None:
        self.open.pop(step, None)
        self.world.note("{} fails step {}", self.peer, step)
        self.world.history.decided(self.peer, step, "fail")
        self.peer.program.decided(step)

    def dropped(self, step: int) -> None:
        """The step is over for this peer alone; what becomes of it, the others decide."""
        self.open.pop(step, None)
        self.world.note("{} gives up step {}", self.peer, step)
        self.peer.program.decided(step)

    def send_done(self, step: int, epoch: int, manifest: bytes, digest: bytes) -> None:
        attempt = self.open[step]
        self.world.history.done_sent(self.peer, epoch, step, attempt.participants)
        frame: Frame = ("done", self.engine.incarnation, epoch, step, 0, manifest, digest)
        self.sent_dones.append(frame)
        del self.sent_dones[:-DONES_KEPT]
        self._tell(attempt.participants, frame)

    def adopted(self, epoch: int) -> None:
        """What older epochs sent about steps that are not open is of no use any more."""
        watermark = self.engine.watermark
        for key in [k for k in self.early if k[0] < epoch and k[1] not in self.open]:
            del self.early[key]
        for table in (self.early, self.dones):
            for key in [k for k in table if k[1] < watermark and k[1] not in self.open]:
                del table[key]

    def abandon(self) -> None:
        for attempt in self.open.values():
            attempt.started = False

    # ------------------------------------------------------------ running an attempt

    def _shards(self, attempt: Attempt) -> int:
        return len(attempt.mates) if self.direct else 1

    def _run(self, step: int, attempt: Attempt) -> None:
        """The operation starts: the own contribution goes out, early frames are applied."""
        if self._refuses(step, attempt):
            return
        attempt.given = value = attempt.buffer[0] // scale(len(attempt.buffer), 0)
        count = self._shards(attempt)
        attempt.buffer = [value * scale(count, shard) for shard in range(count)]
        own = self.engine.incarnation
        for shard in range(count):
            if not self.direct or shard == attempt.rank:
                attempt.contributions[shard] = {own: attempt.buffer[shard]}
        for other in attempt.mates:
            if other != own:
                self._say_open(step, attempt, other)
        for frame in self.early.pop((attempt.epoch, step), ()):
            self.receive(frame)
        self._fold(step, attempt)

    def _refuses(self, step: int, attempt: Attempt) -> bool:
        """Says whether the operation means nothing among those that there are now."""
        if not attempt.misplaced:
            return False
        if not attempt.accused:
            attempt.accused = True
            text = f"step {step} was posted for {attempt.begun_with}"
            suspect = Suspect(attempt.epoch, step, SuspectCode.VIEW_CHANGED, (), text)
            self.engine.control.suspect(suspect)
        return True

    def _say_open(self, step: int, attempt: Attempt, other: int) -> None:
        own, links = self.engine.incarnation, self.world.links
        shard = attempt.mates.index(other) if self.direct else 0
        value = attempt.given * scale(self._shards(attempt), shard)
        value += attempt.shape << SHAPE_BIT  # what fits nobody else's data
        frame: Frame = ("post", own, attempt.epoch, step, shard, value, attempt.shape)
        links.send(self.peer, other, frame)

    def _tell(self, others: tuple[int, ...], frame: Frame) -> None:
        own = self.engine.incarnation
        for other in others:
            if other != own:
                self.world.links.send(self.peer, other, frame)

    def say_again(self, other: int) -> None:
        """A link is (again) up: everything that may have been lost is said again."""
        for step, attempt in list(self.open.items()):
            running = attempt.started and attempt.posted and not self.is_fenced()
            if running and not attempt.misplaced and other in attempt.mates:
                self._say_open(step, attempt, other)
                for shard in sorted(attempt.ready):
                    if self.direct and shard == attempt.rank:
                        self.world.links.send(self.peer, other, self._result(step, attempt, shard))
        for frame in self.sent_dones:
            self.world.links.send(self.peer, other, frame)

    def _result(self, step: int, attempt: Attempt, shard: int) -> Frame:
        own = self.engine.incarnation
        return ("result", own, attempt.epoch, step, shard, attempt.said, None)

    # ------------------------------------------------------------ frames of others

    def receive(self, frame: Frame) -> None:
        engine = self.engine
        if engine.machine is None or engine.failed is not None:
            return
        kind, sender, epoch, step, shard, value, extra = frame
        self.progress += 1
        if kind == "done":
            if step >= engine.watermark:
                self.dones.setdefault((epoch, step), set()).add(sender)
            sender_id = self.world.by_incarnation[sender].peer_id
            engine.perform(engine.machine.done(sender_id, step, epoch, value, extra))
            return
        attempt = self.current(step, epoch)
        if attempt is None:
            if self.may_come_early(step, epoch):
                self.early.setdefault((epoch, step), []).append(frame)
            return
        if self.is_fenced():
            return
        if kind == "post":
            self._on_post(step, attempt, sender, shard, value, extra)
        elif shard not in attempt.ready and not attempt.accused:
            attempt.buffer[shard] = value
            attempt.ready.add(shard)
        self._fold(step, attempt)

    def current(self, step: int, epoch: int) -> Attempt | None:
        """The running attempt that a frame belongs to."""
        attempt = self.open.get(step)
        if attempt is None or not attempt.started or not attempt.posted:
            return None
        return attempt if attempt.epoch == epoch else None

    def may_come_early(self, step: int, epoch: int) -> bool:
        engine, attempt = self.engine, self.open.get(step)
        if step < engine.watermark or (engine.frozen and epoch <= engine.epoch):
            return False
        if attempt is None:
            return epoch >= engine.epoch and step not in self.peer.decided_ahead
        return epoch > attempt.epoch or (epoch == attempt.epoch and not attempt.posted)

    def waits(self) -> tuple[int, int, tuple[WaitOn, ...]]:
        """The oldest open step, what it waits for, and on whom."""
        if not self.open:
            return NO_STEP, Waiting.NOTHING, ()
        step = min(self.open)
        attempt = self.open[step]
        if not attempt.started:
            return step, Waiting.GATE, ()
        if not attempt.sealed:
            return step, Waiting.PROGRAM, ()
        heard = self.dones.get((attempt.epoch, step), ()) if attempt.complete else ()
        silent = [i for i in attempt.mates if i not in attempt.posts]
        ids = self.world.by_incarnation
        waits = [
            WaitOn(ids[i].peer_id, WaitKind.POST if i in silent else WaitKind.DATA)
            for i in attempt.participants
            if i != self.engine.incarnation and i not in heard and self._is_waited_for(attempt, i)
        ]
        return step, Waiting.PEERS, tuple(waits)

    def _is_waited_for(self, attempt: Attempt, other: int) -> bool:
        """Other groups are waited for only with the own part done, and then for their DONE."""
        return attempt.complete or other in attempt.mates

    def is_fenced(self) -> bool:
        return self.engine.frozen

    def _on_post(
        self, step: int, attempt: Attempt, sender: int, shard: int, value: int, shape: int
    ) -> None:
        if shape != attempt.shape:
            if not attempt.accused:
                attempt.accused = True
                assert self.engine.machine is not None
                new = self.engine.machine.newcomers_to(step)
                ids = (self.world.by_incarnation[sender].peer_id, self.peer.peer_id, *new)
                text = f"step {step}: shapes {attempt.shape} and {shape}"
                suspect = Suspect(attempt.epoch, step, SuspectCode.DESCRIPTOR, ids, text)
                self.engine.control.suspect(suspect)
            return
        attempt.posts.add(sender)
        if sender in attempt.mates:
            value -= attempt.shape << SHAPE_BIT
            attempt.contributions.setdefault(shard, {}).setdefault(sender, value)

    def _fold(self, step: int, attempt: Attempt) -> None:
        if attempt.accused or self.is_fenced():
            return
        for shard, values in attempt.contributions.items():
            mine = not self.direct or shard == attempt.rank
            if mine and shard not in attempt.ready and len(values) == len(attempt.mates):
                attempt.buffer[shard] = sum(values.values())
                attempt.ready.add(shard)
                if self.direct:
                    attempt.said = attempt.buffer[shard]
                    self._tell(attempt.mates, self._result(step, attempt, shard))
        self._complete_if_ready(step, attempt)

    def _complete_if_ready(self, step: int, attempt: Attempt) -> None:
        if attempt.complete or not attempt.started or not attempt.sealed:
            return
        if self.is_fenced() or len(attempt.ready) < self._shards(attempt):
            return
        attempt.complete = True
        if self.flips > 0 and len(attempt.mates) > 1:
            self.flips -= 1
            self.world.note("a bit flips at {} in step {}", self.peer, step)
            attempt.flipped = True
            attempt.buffer[0] ^= 1 << (FLIPPED_BIT + self.engine.incarnation)
        self.complete(step, attempt)

    def complete(self, step: int, attempt: Attempt) -> None:
        digest = digest_of(step, attempt.buffer)
        self.engine.perform(self.engine.machine.complete(step, attempt.epoch, digest))


def digest_of(step: int, result: list[int]) -> bytes:
    return hash((step, *result)).to_bytes(16, "little", signed=True)

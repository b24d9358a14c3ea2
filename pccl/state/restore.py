"""Begins with the newest revision that all founders' disks hold together; a part of a first sync.

    offers   everybody says which tensors of which revisions lie on its disk
    choice   the newest that is whole; the same on all
    load     whoever is to give a tensor reads and checks it; if it is damaged: offers again without
    share    each tensor is broadcast by its owner

Invariant: after `run` all members hold the chosen revision; or none has changed its revision, and
memory is as it was, or, where there was none for a copy of it, `SharedState.torn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pccl.base.errors import CorruptResult, RemoteError
from pccl.base.log import get_logger
from pccl.outcome import Peer
from pccl.state.checkpoint import Checkpoints, load
from pccl.state.manifest import (
    Choice,
    Manifest,
    Offer,
    Revision,
    choose,
    decode_offers,
    encode_offers,
)
from pccl.state.shared import SharedState
from pccl.step import Step

OFFERS_BYTES_MAX: Final = 32 << 20  # a peer's 64 offers of 2**20 tensors, a bit each, as digits
ROUNDS_MAX: Final = 64  # each further one means that something on a disk was found damaged
TENSORS_PER_STEP: Final = 32
_log = get_logger("state")

MakeStep = Callable[[str], Step]


@dataclass(frozen=True, slots=True)
class Restored:
    """Attributes:
    revision: what the run goes on from.
    incomplete: newer revisions of which the disks hold a part only; they are lost.
    """

    revision: int
    incomplete: tuple[int, ...]


class Restoring:
    def __init__(
        self, state: SharedState, checkpoints: Checkpoints | None, step: MakeStep, me: Peer
    ) -> None:
        self._state = state
        self._step = step
        self._me = me
        self._found = [] if checkpoints is None else self._usable(checkpoints)
        self._damaged: set[tuple[Path, str]] = set()

    def run(self) -> Restored | None:
        """A collective of founders.  Returns None if their disks hold no whole revision.

        Raises:
            ViewChanged: the members changed; nothing has been decided, begin again.
            CorruptResult: what came together does not have the root that the manifests say.
        """
        for _ in range(ROUNDS_MAX):
            table, peers = self._offers()
            choice = choose(table, len(self._state.layout.entries))
            if choice is None:
                newest = max((o.what.revision for row in table for o in row), default=None)
                if newest is not None:
                    _log.warning("checkpoints up to revision %d are there, none whole", newest)
                return None
            if self._bring(choice, peers):
                for odd in choice.odd:
                    _log.warning(
                        "the checkpoint of revision %d on the disk of peer %s is not what the "
                        "others hold: it is not used, check that machine's memory",
                        choice.what.revision,
                        peers[odd],
                    )
                return self._done(choice)
        raise CorruptResult("the checkpoints are damaged in too many places")

    def _usable(self, checkpoints: Checkpoints) -> list[tuple[Path, Manifest]]:
        usable = []
        for path, manifest in checkpoints.found():
            first = self._state.layout.first_difference(manifest.layout)
            if first is None and manifest.hashing is self._state.hashing:
                usable.append((path, manifest))
            else:
                _log.warning("%s is of another state: %s", path, first or "another hash")
        return usable

    def _offers(self) -> tuple[list[list[Offer]], tuple[Peer, ...]]:
        own = np.frombuffer(encode_offers(self._own_offers()), np.uint8).copy()
        with self._step("offers") as step:
            sizes = step.all_gather(np.array([own.size], np.uint64))
        counts = [int(n) for n in sizes.result.reshape(-1)]
        if max(counts) > OFFERS_BYTES_MAX:
            raise RemoteError(f"offers of checkpoints of {max(counts)} bytes")
        before = step.outcome.contributors
        padded = np.zeros(max(counts), np.uint8)
        padded[: own.size] = own
        with self._step("offers") as step:
            rows = step.all_gather(padded)
        if step.outcome.contributors != before:
            return self._offers()
        table = [
            decode_offers(bytes(row[:count]))
            for row, count in zip(rows.result.reshape(len(counts), -1), counts, strict=True)
        ]
        return table, before

    def _own_offers(self) -> list[Offer]:
        offers = []
        for path, manifest in reversed(self._found):
            held = set(manifest.held) - {name for at, name in self._damaged if at == path}
            bits = sum(1 << i for i, e in enumerate(self._state.layout.entries) if e.name in held)
            offers.append(Offer(_revision(manifest), bits))
        return sorted(offers, key=lambda offer: offer.what, reverse=True)

    def _bring(self, choice: Choice, peers: Sequence[Peer]) -> bool:
        """Loads and shares; False if something was found damaged, and nothing was shared."""
        with self._state.all_or_nothing() as whole:
            if not self._gather(choice, peers):
                return False
            if self._state.survey()[1] != choice.what.root:
                text = f"revision {choice.what.revision} of the disks has another root"
                raise CorruptResult(text)
            whole()
        return True

    def _gather(self, choice: Choice, peers: Sequence[Peer]) -> bool:
        entries = self._state.layout.entries
        mine = {e.name for e, o in zip(entries, choice.owners, strict=True) if peers[o] == self._me}
        failed = np.array([not self._load(choice.what, mine)], np.uint64)
        with self._step("loaded") as step:
            step.all_reduce(failed, op="sum")
        if failed[0]:
            return False
        for at in range(0, len(entries), TENSORS_PER_STEP):
            with self._step("share") as step:
                for index in range(at, min(at + TENSORS_PER_STEP, len(entries))):
                    memory = self._state.memory_named(entries[index].name)
                    if len(memory):
                        step.broadcast(memory, peers[choice.owners[index]])
        self._state.push()
        return True

    def _load(self, what: Revision, wanted: set[str]) -> bool:
        missing = set(wanted)
        for path, manifest in self._found:
            if missing and _revision(manifest) == what:
                here = missing & set(manifest.held)
                right = load(path, manifest, self._state, here)
                self._damaged |= {(path, name) for name in here - right}
                missing -= right
        return not missing

    def _done(self, choice: Choice) -> Restored:
        what = choice.what
        self._state.restored(what.revision, what.lineage)
        incomplete = tuple(sorted({newer.revision for newer in choice.newer}))
        lost = "whatever came after it is lost"
        if incomplete:
            lost += f", of revisions {', '.join(map(str, incomplete))} the disks hold parts only"
        _log.warning("all had died: the run goes on from revision %d; %s", what.revision, lost)
        return Restored(what.revision, incomplete)


def _revision(manifest: Manifest) -> Revision:
    return Revision(manifest.revision, manifest.lineage, manifest.root)

"""Who fetches one update from whom, so that its publisher sends it twice, not once per receiver.

Pure.  The publisher is the root.  Every receiver that asks is put below the holder nearest to the
root that has a free place (*fan-out*, 2 by default); a tree of n nodes has n + 1 free places, so
there is one.  A holder passes a chunk on as soon as it has checked it, so all levels receive at
once.  Who has everything frees its place above and keeps its own.

When a holder dies, stops or lies, those below it say so, each for itself, and are put elsewhere,
never below themselves.  A holder that only waits for its own source says `Waiting` to those below
it, so nobody blames it for what is not its fault.  One that was blamed for silence gets nobody new
until the publisher hears it again; one that was blamed twice, or once for wrong bytes, never does.

Invariant: following sources from any receiver leads to the root.  The root is given a further
place beyond its fan-out only if no other holder could take anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pccl.weights.frames import ROOT, Trouble

FAN_OUT: Final = 2
STRIKES_MAX: Final = 2


@dataclass(slots=True)
class _Node:
    source: bytes  # ROOT, or a receiver
    complete: bool = False
    suspect: bool = False
    liar: bool = False
    strikes: int = 0  # troubles with it, however well the publisher hears it
    gives: bool = True  # can be reached, and keeps the update
    below: set[bytes] = field(default_factory=set)  # those that fetch from it now


class Tree:
    """The receivers of one update."""

    def __init__(self, fan_out: int = FAN_OUT) -> None:
        assert fan_out >= 1
        self._fan_out = fan_out
        self._nodes: dict[bytes, _Node] = {}
        self._from_root: set[bytes] = set()  # that fetch or have fetched from it

    def __contains__(self, receiver: bytes) -> bool:
        return receiver in self._nodes

    @property
    def liars(self) -> frozenset[bytes]:
        """Who was blamed for wrong bytes."""
        return frozenset(name for name, node in self._nodes.items() if node.liar)

    def source_of(self, receiver: bytes) -> bytes:
        return self._nodes[receiver].source

    def assign(
        self,
        receiver: bytes,
        *,
        gives: bool = True,
        blamed: bytes | None = None,
        trouble: Trouble = Trouble.NONE,
    ) -> bytes:
        """Returns from whom a receiver shall fetch; what it says of its last source counts first.

        Args:
            gives: whether others can fetch from this receiver.
            blamed: its last source, if there was trouble with it.
        """
        node = self._nodes.get(receiver)
        if node is None:
            node = self._nodes[receiver] = _Node(ROOT, gives=gives)
        else:
            self._detach(receiver)
        if blamed is not None and blamed != receiver:
            self._blame(blamed, trouble)
        node.complete = False
        node.source = self._place_for(receiver, None if trouble == Trouble.NONE else blamed)
        if node.source == ROOT:
            self._from_root.add(receiver)
        else:
            self._nodes[node.source].below.add(receiver)
        return node.source

    def completed(self, receiver: bytes, *, gives: bool = True) -> None:
        """A receiver has everything: its place above is free.  One that is not known yet has come
        back with what it had."""
        node = self._nodes.get(receiver)
        if node is None:
            self._nodes[receiver] = _Node(ROOT, complete=True, gives=gives)
        elif not node.complete:
            node.complete = True
            if node.source != ROOT:
                self._nodes[node.source].below.discard(receiver)

    def heard(self, receiver: bytes) -> None:
        """A word from it: whatever it was blamed for, it is not silent."""
        node = self._nodes.get(receiver)
        if node is not None:
            node.suspect = False

    def released(self, receiver: bytes) -> None:
        """It does not keep the update any more; those below it will come and ask."""
        node = self._nodes.get(receiver)
        if node is not None:
            node.gives = False

    def left(self, receiver: bytes) -> None:
        """It is gone.  Those below it ask for another source themselves."""
        if receiver not in self._nodes:
            return
        self._detach(receiver)
        node = self._nodes.pop(receiver)
        for name in node.below:
            below = self._nodes[name]
            below.source = ROOT  # until it asks; it costs the root nothing before that

    def _detach(self, receiver: bytes) -> None:
        node = self._nodes[receiver]
        if node.source == ROOT:
            if not node.complete:
                self._from_root.discard(receiver)
        elif node.source in self._nodes:
            self._nodes[node.source].below.discard(receiver)

    def _blame(self, blamed: bytes, trouble: Trouble) -> None:
        node = self._nodes.get(blamed)
        if node is None:
            return
        match trouble:
            case Trouble.LOST | Trouble.SILENT:
                node.strikes += not node.suspect  # all below it say the same of one silence
                node.suspect = True
                node.gives = node.gives and node.strikes < STRIKES_MAX
            case Trouble.CORRUPT:
                node.liar = True
            case Trouble.GONE:
                node.gives = False
            case Trouble.NONE:
                pass

    def _place_for(self, receiver: bytes, avoid: bytes | None) -> bytes:
        if avoid != ROOT and len(self._from_root) < self._fan_out:
            return ROOT
        barred = self._subtree(receiver)
        best: tuple[int, int, bytes] | None = None
        for name, node in self._nodes.items():
            usable = node.gives and not node.suspect and not node.liar
            free = len(node.below) < self._fan_out
            if usable and free and name not in barred and name != avoid:
                depth = self._depth(name)
                if depth is None:
                    continue
                candidate = (depth, len(node.below), name)
                best = candidate if best is None else min(best, candidate)
        return ROOT if best is None else best[2]

    def _depth(self, name: bytes) -> int | None:
        """Steps to the root; None if one on the way cannot be trusted to bring anything."""
        depth = 0
        while name != ROOT:
            node = self._nodes[name]
            if node.complete:
                return depth + 1
            if node.suspect or node.liar:
                return None
            name = node.source
            depth += 1
        return depth

    def _subtree(self, receiver: bytes) -> set[bytes]:
        found, ahead = {receiver}, [receiver]
        while ahead:
            ahead_of = self._nodes[ahead.pop()].below
            new = ahead_of - found
            found |= new
            ahead += new
        return found

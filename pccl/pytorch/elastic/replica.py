"""What this process is a part of: a replica, of one process or of several.

A replica of several processes is held together by a static group (`shards`), and each part of it is
a member of another peer group of the elastic run.  It is in as a whole, or not at all.

Invariant: the parts of one replica take the same decisions: what is known in one peer group only is
told to the others (`agreed`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pccl.outcome import Peer
from pccl.pytorch.elastic.run import ElasticRun
from pccl.pytorch.group import ProcessGroupPccl

PEER_ID_BYTES = 16
REPLICA_ID_BYTES = 8


class Replica:
    """One process by itself, until `bind`."""

    def __init__(self, run: ElasticRun) -> None:
        self._run = run
        self._peers: frozenset[Peer] = frozenset()
        self._shards: Any = None
        self.seen: set[Peer] = set()  # of the partners, those that have been members

    def bind(self, shards: Any) -> None:
        """Says which static group the parts of this replica make up; a collective call."""
        own = np.frombuffer(bytes(self._run.communicator.peer_id), np.uint8).copy()
        rows = [
            torch.empty(PEER_ID_BYTES, dtype=torch.uint8, device="cpu")
            for _ in range(shards.size())
        ]
        dist.all_gather(rows, torch.from_numpy(own), group=shards)
        self._peers = frozenset(Peer(bytes(row.numpy())) for row in rows)
        self._shards = shards

    @property
    def divided(self) -> bool:
        """Says whether it consists of several processes."""
        return self._shards is not None

    @property
    def parts(self) -> int:
        return int(self._shards.size()) if self.divided else 1

    @property
    def name(self) -> bytes:
        """8 bytes that all parts share."""
        return bytes(min(self._peers, default=self._run.communicator.peer_id))[:REPLICA_ID_BYTES]

    @property
    def partners(self) -> frozenset[Peer]:
        return self._peers - {self._run.communicator.peer_id}

    @property
    def share(self) -> tuple[int, int]:
        """Which share of how many of a step's samples is this replica's.

        A process's rank, but where replicas have several processes: those are ranked among other
        peers each, and must go by one order of the replicas.
        """
        run = self._run
        if not self.divided:
            return run.place.rank, run.place.size
        names = sorted(run.replicas.get(member, bytes(member)) for member in run.members)
        return names.index(self.name), len(names)

    def whole(self) -> bool:
        """Says whether no part is known to be lost."""
        return not isinstance(self._shards, ProcessGroupPccl) or self._shards.run.whole

    def gather(self) -> None:
        """Waits for all parts, so that they come in together, as nearly as can be."""
        if self.divided:
            dist.barrier(group=self._shards)

    def agreed(self, spoiled: bool, meets: bool) -> tuple[bool, bool]:
        """Returns what some part knows: the step is spoiled, all must meet.

        A step is spoiled, too, if a loss has been replayed by some parts only, so that their means
        are of other replicas.
        """
        if not self.divided:
            return spoiled, meets
        replicas = self._run.replicas_digest()
        flags = torch.tensor([spoiled, meets, replicas, -replicas], device="cpu")
        try:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._shards)
        except dist.DistError:
            self._run.leave_at_once("this replica has lost a process")
            raise
        differ = int(flags[2]) != -int(flags[3])
        return bool(flags[0]) or differ, bool(flags[1]) or differ

"""How soon a peer may come in again that was lost before.

A process that dies again and again, or a machine with a bad line, would cost the others a flush
each time.  So whoever was lost without a plan waits before its next activation: not at all after
the first loss, then 5 s, doubling up to 10 min with each further one; each 10 min that it is a
member take one loss back.  Peers are known by their id, which outlives a process only if its
identity is kept in a file.  A planned leave counts nothing.

Not durable: a coordinator that starts anew forgives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FORGIVEN_S: Final = 600.0  # of membership per loss
KNOWN_MAX: Final = 4096  # peers; the one lost longest ago is forgotten first


@dataclass(slots=True)
class _Record:
    losses: int
    lost_s: float


class Flaps:
    def __init__(self, first_delay_s: float = 5.0, most_delay_s: float = 600.0) -> None:
        self._first_delay_s = first_delay_s
        self._most_delay_s = most_delay_s
        self._records: dict[bytes, _Record] = {}

    def lost(self, peer_id: bytes, member_for_s: float, now_s: float) -> None:
        """Notes that a member was lost, or put out, after so long in the run."""
        record = self._records.pop(peer_id, _Record(0, now_s))
        forgiven = int(member_for_s // FORGIVEN_S)
        record.losses = max(0, record.losses - forgiven) + 1
        record.lost_s = now_s
        self._records[peer_id] = record
        while len(self._records) > KNOWN_MAX:
            self._records.pop(next(iter(self._records)))

    def ready_s(self, peer_id: bytes) -> float:
        """Returns when this peer may be activated again; 0 if it may be at any time."""
        record = self._records.get(peer_id)
        return 0.0 if record is None else record.lost_s + self.delay_s(record.losses)

    def delay_s(self, losses: int) -> float:
        """Returns how long a peer waits after that many losses."""
        if losses <= 1:
            return 0.0
        return min(self._first_delay_s * 2.0 ** min(losses - 2, 16), self._most_delay_s)

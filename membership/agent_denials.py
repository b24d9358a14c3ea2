"""Whom a secured run has denied, as far as this process has been told, and what ends with them.

Certificates say only until when somebody may come; who is denied before that, a coordinator tells
(`Credentials.keep_informed`).  Whoever serves connections asks here before, and is called when one
that it serves must end.

Invariant: who was denied stays so; `end` of a peer that is denied has been called, or is being
called, once `add` has returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pccl.base.log import get_logger

_log = get_logger("membership")


class Denied:
    """Of one process; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: set[bytes] = set()
        self._ends: dict[int, tuple[bytes, Callable[[], None]]] = {}
        self._serial = 0
        self.heard = False  # a coordinator has told all that it knew

    def __contains__(self, peer_id: bytes) -> bool:
        with self._lock:
            return peer_id in self._peers

    def add(self, peers: Iterable[bytes]) -> None:
        """Takes note of these, and ends what is served to them."""
        with self._lock:
            self._peers.update(peers)
            over = [serial for serial, (who, _) in self._ends.items() if who in self._peers]
            ends = [self._ends.pop(serial) for serial in over]
        for who, end in ends:
            _log.warning("peer %s was revoked: what it had open here ends", who.hex()[:8])
            try:
                end()
            except Exception:  # our mistake; the others end all the same
                _log.exception("a connection of a peer that was revoked could not be ended")

    @contextmanager
    def ends(self, peer_id: bytes, end: Callable[[], None]) -> Iterator[None]:
        """Within it `end` is called as soon as this peer is denied, on whatever thread hears of it;
        at once if it is already."""
        with self._lock:
            self._serial += 1
            serial = self._serial
            denied = peer_id in self._peers
            if not denied:
                self._ends[serial] = peer_id, end
        if denied:
            end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.pop(serial, None)

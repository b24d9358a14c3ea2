"""Fetches a state from those who hold it: one thread for each source, one planner for all.

Invariant: a leaf is written into the state's memory only after its hash was found to be the one
that belongs to the target's root; nobody else writes meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from pccl.base.clock import Deadline
from pccl.base.errors import DeadlineExceeded, PcclError, RemoteError, StepFailed
from pccl.base.log import get_logger
from pccl.membership.messages import MemberInfo
from pccl.outcome import Peer
from pccl.state import messages as m
from pccl.state.election import Target
from pccl.state.fetch import STALL_S, Fetching, Transfer
from pccl.state.layout import LEAF_BYTES
from pccl.state.opening import Opened, Wrong, open_source
from pccl.state.shared import SharedState
from pccl.state.stream import Identity, Stream, StreamLost
from pccl.state.tensors import Bytes
from pccl.state.tree import differing

IDLE_LOOK_S = 0.01
DEPTH = 2  # questions under way on one stream, so that it never runs dry
STREAMS_PER_SOURCE = 2  # one is read while what the other brought is hashed and copied
_log = get_logger("state")


class Receiver:
    """One fetch of one target into one state."""

    def __init__(
        self,
        state: SharedState,
        target: Target,
        members: Sequence[MemberInfo],
        identity: Identity,
        *,
        stall_s: float = STALL_S,
        opened: Sequence[Opened] = (),
        ours: bytes | None = None,
        drain_s: float = 0.0,
    ) -> None:
        """`drain_s`: how long to wait, when all is here, for what is still owed on `opened`, of
        which the caller has further use; what then still owes something is closed."""
        self._state = state
        self._target = target
        self._members = list(members)
        self._identity = identity
        self._stall_s = stall_s
        self._drain_s = drain_s
        self._ours = ours  # digests of the memory as it is, if they are known
        self._opened = {one.member.peer_id: one for one in opened}
        self._deadline: Deadline | None = None
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._digests = b""
        self._at_work: set[threading.Thread] = set()  # those that may write; others only dial
        self._lent = {one.stream for one in opened}  # stay open if nothing is owed on them
        self._streams: set[Stream] = set(self._lent)
        self._owing: set[Stream] = set()
        self._over = self._written = False
        self.transfer = Transfer()

    def run(self, deadline: Deadline) -> Transfer:
        """Brings the memory to the target.

        Raises:
            StepFailed: no source is left; what was written stays (and the state is `torn`), and a
                further fetch asks only for the rest.
            DeadlineExceeded: the same, for time.
            UsageError: the layouts differ, in words; nothing was written.
        """
        self._deadline = deadline
        for stream in self._lent:
            stream.until(deadline)
        with self._state.writing():
            was_torn = self._state.torn
            try:
                self._digests = self._digests_of_target()
                needed = differing(self._own_digests(), self._digests, self._state.hashing)
                fetching = self._plan(needed)
                self._state.torn = True
                try:
                    if needed:
                        self._start(fetching)
                    self._wait(fetching, deadline)
                    self._state.torn = False  # every leaf is the target's
                finally:
                    self._count(fetching, needed)
            finally:
                self._end()  # before anybody else may write
                if self._state.torn and not self._written:
                    self._state.torn = was_torn
            self._state.push()
        return self.transfer

    def _own_digests(self) -> bytes:
        if self._ours is None:
            self._state.pull()
            self._ours = self._state.hash()
        return self._ours

    def _plan(self, needed: list[int]) -> Fetching:
        sizes = [leaf.byte_count for leaf in self._state.layout.leaves]
        fetching = Fetching(needed, sizes, [member.peer_id for member in self._members])
        for peer, why in {**self.transfer.struck, **self.transfer.lost}.items():
            fetching.lose(bytes(peer), why)
        return fetching

    def _digests_of_target(self) -> bytes:
        """Asks one source after another until one has the target's digests."""
        for member in self._members:
            one = self._opened.get(member.peer_id) or self._open(member)
            if one is not None:
                return one.digests
        raise StepFailed(f"nobody gives revision {self._target.revision}: {self._whys()}")

    def _whys(self) -> str:
        both = {**self.transfer.lost, **self.transfer.struck}.items()
        return "; ".join(f"peer {peer} {why}" for peer, why in both) or "there is no source"

    def _open(self, member: MemberInfo) -> Opened | None:
        peer = Peer(member.peer_id)
        try:
            one = open_source(
                member,
                self._identity,
                self._state,
                stall_s=self._stall_s,
                describe_s=self._stall_s,
                deadline=self._deadline,
            )
        except (StreamLost, RemoteError) as error:
            with self._lock:
                if not self._over and isinstance(error, RemoteError):
                    self._strike(peer, str(error))
                elif not self._over:
                    self.transfer.lost[peer] = str(error)
            return None
        said = one.described
        if (said.revision, said.root) != (self._target.revision, self._target.root):
            one.stream.close()
            with self._lock:
                if not self._over:
                    why = f"holds revision {said.revision} with another root"
                    self.transfer.lost[peer] = why
            return None
        with self._lock:
            self._opened.setdefault(member.peer_id, one)
            self._streams.add(one.stream)
            if self._over:
                one.stream.close()
        return one

    def _strike(self, peer: Peer, why: str) -> None:
        if peer not in self.transfer.struck:
            _log.warning("peer %s is excluded as a source of state: it %s", peer, why)
        self.transfer.struck[peer] = why

    def _start(self, fetching: Fetching) -> None:
        for member in (x for x in self._members if fetching.sources[x.peer_id].usable):
            for stream in range(STREAMS_PER_SOURCE):
                name = f"pccl-fetch-{member.peer_id.hex()[:8]}-{stream}"
                args = member, fetching, stream
                threading.Thread(None, self._fetch_from, name, args, daemon=True).start()

    def _wait(self, fetching: Fetching, deadline: Deadline) -> None:
        with self._turn:
            while not fetching.done:
                if (why := fetching.hopeless) is not None:
                    raise StepFailed(f"revision {self._target.revision} is not complete: {why}")
                if deadline.passed():
                    raise DeadlineExceeded(
                        f"{len(fetching.missing)} of {len(self._state.layout.leaves)} pieces of "
                        f"revision {self._target.revision} have not come in time"
                    )
                self._turn.wait(min(0.25, deadline.remaining_s()))

    def _count(self, fetching: Fetching, needed: list[int]) -> None:
        transfer, state = self.transfer, self._state
        transfer.byte_count, transfer.leaf_count = fetching.byte_count, len(needed)
        entries = sorted({state.layout.leaves[leaf].entry for leaf in needed})
        transfer.tensors = tuple(state.layout.entries[i].name for i in entries)
        for key, source in fetching.sources.items():
            if source.byte_count:
                transfer.by_source[Peer(key)] = source.byte_count

    def _end(self) -> None:
        with self._turn:
            self._over = True
            self._turn.notify_all()
            self._turn.wait_for(lambda: not self._owing & self._lent, self._drain_s)
            streams = [s for s in self._streams if s not in self._lent or s in self._owing]
            threads = list(self._at_work)
        for stream in streams:
            stream.close()
        for thread in threads:  # who still dials, perhaps a relay that has stopped, finds it over
            thread.join()

    # ---- one source's thread

    def _fetch_from(self, member: MemberInfo, fetching: Fetching, stream: int) -> None:
        key = member.peer_id
        why, one = "failed", None
        try:
            first = self._opened.get(key) if stream == 0 else None
            one = first or self._open(member)
            if one is not None and self._begins():
                self._ask_all(one, fetching)
            why = self.transfer.lost.get(Peer(key), "is not asked any more")
        except StreamLost as error:
            why = str(error)
        except PcclError as error:  # what it says makes no sense
            why = str(error)
            with self._turn:
                if not self._over:
                    self._strike(Peer(key), why)
        except Exception as error:
            why = f"could not be read: {error}"
            _log.exception("fetching the state failed")
        finally:
            with self._turn:
                self._at_work.discard(threading.current_thread())
                if one is not None and one.stream in self._owing:  # nobody reads it any more
                    self._owing.discard(one.stream)
                    self._lent.discard(one.stream)
                if self._over:
                    pass  # what was found belongs to the caller
                elif one is None and stream > 0:
                    self.transfer.lost.pop(Peer(key), None)  # it does without a second stream
                elif not fetching.done:
                    source = fetching.sources[key]
                    if not source.excluded:
                        self.transfer.lost.setdefault(Peer(key), why)
                        _log.info("peer %s as a source of state: %s", Peer(key), why)
                    fetching.lose(key, why)
                self._turn.notify_all()

    def _begins(self) -> bool:
        """Says whether this thread may begin to fetch; then it is waited for in the end."""
        with self._lock:
            if not self._over:
                self._at_work.add(threading.current_thread())
            return not self._over

    def _ask_all(self, one: Opened, fetching: Fetching) -> None:
        key, stream = one.member.peer_id, one.stream
        staging = np.empty(LEAF_BYTES, np.uint8)
        asked: list[list[int]] = []
        while True:
            while len(asked) < DEPTH:
                with self._turn:
                    usable = fetching.sources[key].usable
                    if self._over or fetching.done or not usable:
                        if not (asked and usable and stream in self._lent):
                            return
                        break  # what is owed is read, so that the stream is good for more
                    batch = fetching.ask(key)
                    if not batch and not asked:
                        self._turn.wait(IDLE_LOOK_S)
                if not batch:
                    break
                fetch = m.Fetch(self._target.revision, self._target.root, tuple(batch))
                stream.send(m.question_codec.encode(fetch))
                asked.append(batch)
                self._owing.add(stream)
            if asked:
                self._take(one, asked.pop(0), fetching, staging)
                if not asked:
                    with self._turn:
                        self._owing.discard(stream)
                        self._turn.notify_all()

    def _take(self, one: Opened, batch: list[int], fetching: Fetching, staging: Bytes) -> None:
        stream, key = one.stream, one.member.peer_id
        leaves = [self._state.layout.leaves[i] for i in batch]
        answer = m.answer_codec.decode(stream.receive())
        if isinstance(answer, m.Sorry):
            raise StreamLost(answer.text)
        if not isinstance(answer, m.Leaves) or answer.byte_count != sum(
            leaf.byte_count for leaf in leaves
        ):
            raise Wrong("answered what was not asked")
        view = staging.data
        for index, leaf in zip(batch, leaves, strict=True):
            before = stream.received
            try:
                stream.receive_into(view[: leaf.byte_count])
            except StreamLost:
                with self._turn:
                    self.transfer.broken_bytes += stream.received - before
                raise
            right = self._is_right(index, leaf.byte_count, staging)
            with self._turn:
                writes = not self._over and fetching.arrived(key, index, right)
                excluded = fetching.sources[key].excluded
                if not right and excluded:
                    self._strike(Peer(key), "sent bytes of another hash")
            if writes:
                self._written = True
                self._state.memory_of(leaf)[:] = staging[: leaf.byte_count]
                with self._turn:
                    fetching.written()
            if fetching.done or excluded:
                with self._turn:
                    self._turn.notify_all()
            if excluded:
                return

    def _is_right(self, index: int, byte_count: int, staging: Bytes) -> bool:
        hashing = self._state.hashing
        digest = hashing.blocks(staging.ctypes.data, byte_count, byte_count)
        return self._digests.startswith(digest, index * hashing.digest_bytes)

"""The trainer's end of weight sync.

`publish` compares the state with the last one, in the caller's thread, and hands the bytes of the
update to a thread that serves them.  So training waits for a comparison and never for a network.

Invariant: the baseline, the newest revision and what is served change together, at the end of a
`publish` that succeeded, or not at all.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from pccl.arguments import check_seconds
from pccl.base.errors import Closed, UsageError
from pccl.base.log import get_logger
from pccl.transport.address import parse_address
from pccl.weights.channels import ENROL_S, Channels
from pccl.weights.door import require_allowed
from pccl.weights.errors import RevisionExists
from pccl.weights.frames import HEADS_BYTES_MAX, ID_BYTES, UPDATE_BYTES_MAX, Manifest
from pccl.weights.history import History
from pccl.weights.holding import Holding, make_manifest
from pccl.weights.hub import Hub
from pccl.weights.layout import (
    Bytes,
    Spec,
    Tensor,
    difference,
    encode_spec,
    state_digest,
    tensor_digest,
    tensors_of,
)
from pccl.weights.loop_thread import START_S, LoopThread
from pccl.weights.tree import FAN_OUT
from pccl.weights.update import RECORD_BYTES, Difference, advance, encode_anchor, encode_delta

ANCHOR_EVERY: Final = 100  # an anchor is a copy of the state: 1 % of its bytes per revision
HISTORY_BYTES_MAX: Final = 256 << 20  # of deltas from before the newest anchor
REVISION_MAX: Final = (1 << 63) - 1
_log = get_logger("weights")


@dataclass(frozen=True, slots=True)
class Published:
    """What a `publish` did."""

    revision: int
    digest: bytes
    """XXH3-128 over names, types, shapes and every bit of the state."""
    delta_bytes: int
    """What a receiver that holds the revision before fetches; 0 if there is none before."""
    anchor_bytes: int
    """What a newcomer fetches; 0 if this revision has no anchor."""
    changed: int
    """Elements whose bits have changed (a complex128 counts as two); all of them at first."""
    total: int


@dataclass(slots=True)
class _Baseline:
    """The state as it was last published."""

    specs: tuple[Spec, ...]
    memory: list[Bytes]
    digests: tuple[bytes, ...]
    digest: bytes


class Publisher:
    """Publishes revisions of a state to receivers that come and go.  Thread-safe.

    Costs the memory of one copy of the state (what the next revision is compared with), one or,
    while a new one is made, two anchors of the same size, and the deltas that are kept.
    """

    def __init__(
        self,
        listen: str = "127.0.0.1:0",
        *,
        anchor_every: int = ANCHOR_EVERY,
        history_bytes_max: int = HISTORY_BYTES_MAX,
        fan_out: int = FAN_OUT,
        threads: int = 0,
        insecure: bool = False,
        context: ssl.SSLContext | None = None,
        ticket: str | None = None,
        coordinator: str | None = None,
        identity: str | os.PathLike[str] | None = None,
        enrol_timeout_s: float = ENROL_S,
    ) -> None:
        """Begins to listen.

        Args:
            listen: host:port for the receivers; port 0: any, see `address`.
            anchor_every: revisions from one full copy to the next.
            history_bytes_max: of deltas kept for those who are behind the newest anchor.
            fan_out: how many receivers fetch an update from this process; others fetch from them.
            threads: that compare and code during a `publish`; 0: one per processor, 8 at most.
            insecure: allows a listener that other machines can reach, unencrypted.
            context: encrypts the way to receivers that have one, too, and not the way between
                these; for what no ticket secures.
            ticket: of a secured run, for a trainer (`pccl ca ticket`): everything is encrypted,
                and only who has enrolled by a ticket of the run, for a trainer or a receiver,
                fetches anything.  None: PCCL_TICKET, unless there is a `context`; "": none.
            coordinator: host:port of the run's, where the ticket does not say it.
            identity: file that keeps the key; that of `pccl.connect`, which then uses up one use
                of the ticket for both.  None makes a new one.
            enrol_timeout_s: for the enrolment, if there is a ticket.

        Raises:
            UsageError: an argument is not as described, or the address cannot be listened on.
            ConnectError: no coordinator gave a certificate in time, or it refused the ticket.
        """
        where = parse_address(listen, port_min=0)
        channels = Channels.parse(context, ticket, coordinator, identity, publishes=True)
        if not channels.encrypted:
            require_allowed(where.host, insecure)
        if not 1 <= fan_out <= 64:
            raise UsageError(f"fan_out must be 1 to 64, not {fan_out}")
        if not 0 <= threads <= 256:
            raise UsageError(f"threads must be 0 to 256, not {threads}")
        self._history = History(anchor_every=anchor_every, bytes_max=history_bytes_max)
        self._lock = threading.Lock()
        self._baseline: _Baseline | None = None
        self._updates = 0
        self._pool = ThreadPoolExecutor(threads or _threads(), "pccl-publish")
        self._closed = False
        self._hub = Hub(
            lineage=os.urandom(ID_BYTES),
            secret=os.urandom(ID_BYTES),
            fan_out=fan_out,
            channels=channels,
        )
        self._channels = channels
        self._enrol_s = check_seconds("enrol_timeout_s", enrol_timeout_s)
        self._address = where
        self._loop = LoopThread(self._live, "pccl-publisher")
        self._loop.start(self._enrol_s + START_S)

    async def _live(self) -> None:
        await self._channels.begin(self._enrol_s)
        self._address = await self._hub.open(self._address)
        self._loop.ready()
        keeping = [
            asyncio.create_task(self._keep_fresh()),
            asyncio.create_task(self._keep_informed()),
        ]
        try:
            await self._hub.run()
        finally:
            for task in keeping:
                task.cancel()

    async def _keep_fresh(self) -> None:
        try:
            await self._channels.keep_fresh()
        except Exception:  # our mistake; what is served goes on until the certificate ends
            _log.exception("a publisher's certificate is not renewed any more")

    async def _keep_informed(self) -> None:
        try:
            await self._channels.keep_informed()
        except Exception:  # our mistake; who is revoked is served until its certificate ends
            _log.exception("a publisher hears no more of who is revoked")

    @property
    def address(self) -> str:
        """host:port, for `Receiver`."""
        return str(self._address)

    @property
    def revision(self) -> int:
        """The newest revision; 0 while there is none."""
        return self._history.newest

    @property
    def receivers(self) -> int:
        """How many are connected."""
        return self._hub.receivers

    @property
    def sent_bytes(self) -> int:
        """Bytes of updates that this process itself has sent."""
        return self._hub.given.byte_count

    @property
    def corruption_reports(self) -> int:
        """How often a receiver has said that somebody gave it wrong bytes."""
        return self._hub.reports

    def publish(self, state: Mapping[str, Any], revision: int | None = None) -> Published:
        """Publishes a state as the next revision; returns as soon as it may be changed again.

        Args:
            state: numpy arrays or torch CPU tensors by name, contiguous, of any dtype that pccl
                knows; names, dtypes and shapes as before.  Borrowed until this returns.
            revision: a number above the newest one; None: the next.

        Returns:
            Published.  Receivers are told of it in the background.

        Raises:
            RevisionExists: the revision is not above the newest.
            UsageError: a tensor is unusable, differs in type or shape from before, or the state is
                too large.
            Closed: after `close`.  Forked: in a fork of the process that made it.
            In each case nothing is published, and the next `publish` compares with the same state
            as this one did; or, where an interrupt cut off the very end, sends an anchor.

        Cost: reads the state twice (comparison, digests) and the last one once; with an anchor, a
        copy more.
        Source: SparseRL-Sync (arXiv 2605.07330), PULSE (arXiv 2602.03839).
        """
        self._loop.require_here()
        with self._lock:
            if self._closed:
                raise Closed("the publisher is closed; make a new one")
            number = self._number(revision)
            tensors = tensors_of(state)
            _require_possible(tensors)
            if self._baseline is None:
                return self._first(tensors, number)
            found = difference(self._baseline.specs, [tensor.spec for tensor in tensors])
            if found is not None:
                raise UsageError(f"the state is not the one that was published before: {found}")
            return self._next(tensors, self._baseline, number)

    def close(self, timeout_s: float = 5.0) -> None:
        """Stops serving; receivers keep what they have.  Idempotent."""
        self._closed = True
        self._loop.stop(timeout_s)
        self._pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _number(self, revision: int | None) -> int:
        newest = self._history.newest
        if revision is None:
            return newest + 1
        if isinstance(revision, bool) or not isinstance(revision, int):
            raise UsageError(f"a revision is an int, not {revision!r}")
        if not 1 <= revision <= REVISION_MAX:
            raise UsageError(f"a revision is 1 to 2^63-1, not {revision}")
        if revision <= newest:
            raise RevisionExists(revision, newest)
        return revision

    def _first(self, tensors: tuple[Tensor, ...], revision: int) -> Published:
        digests = tuple(tensor_digest(tensor.memory) for tensor in tensors)
        specs = tuple(tensor.spec for tensor in tensors)
        baseline = _Baseline(
            specs,
            [np.array(tensor.memory) for tensor in tensors],
            digests,
            state_digest(specs, digests),
        )
        anchor = self._anchor(tensors, digests, baseline.digest, revision)
        total = sum(t.memory.size // t.spec.cell_bytes for t in tensors)
        self._commit(None, anchor)
        self._baseline = baseline
        size = anchor.manifest.byte_count
        return Published(revision, baseline.digest, 0, size, total, total)

    def _next(self, tensors: tuple[Tensor, ...], baseline: _Baseline, revision: int) -> Published:
        found: Difference = encode_delta(
            tensors,
            baseline.memory,
            baseline.digests,
            revision,
            baseline.digest,
            self._pool.map,
        )
        delta = Holding(
            self._describe(revision, baseline.digest, found.digest, tensors, found.payload),
            found.payload,
        )
        anchor = None
        if self._history.anchor_due(revision, len(found.payload)):
            anchor = self._anchor(tensors, found.digests, found.digest, revision)
        self._baseline = None  # cut off here, the next revision has nothing to be compared with
        advance(baseline.memory, baseline.specs, found.patches)
        baseline.digests, baseline.digest = found.digests, found.digest
        self._commit(delta, anchor)
        self._baseline = baseline
        anchor_bytes = anchor.manifest.byte_count if anchor else 0
        size = len(found.payload)
        return Published(revision, found.digest, size, anchor_bytes, found.changed, found.total)

    def _anchor(
        self, tensors: tuple[Tensor, ...], digests: tuple[bytes, ...], digest: bytes, revision: int
    ) -> Holding:
        data = encode_anchor(tensors, digests, revision)
        return Holding(self._describe(revision, b"", digest, tensors, data), data)

    def _describe(
        self, revision: int, base: bytes, digest: bytes, tensors: tuple[Tensor, ...], data: bytes
    ) -> Manifest:
        self._updates += 1  # one that is never served does no harm
        return make_manifest(
            update=self._updates,
            revision=revision,
            base=base,
            digest=digest,
            state_bytes=sum(tensor.memory.size for tensor in tensors),
            data=data,
        )

    def _commit(self, delta: Holding | None, anchor: Holding | None) -> None:
        self._history.append(delta.manifest if delta else None, anchor.manifest if anchor else None)
        added = [holding for holding in (anchor, delta) if holding is not None]
        kept = frozenset(manifest.update for manifest in self._history.held)
        self._loop.call(lambda: self._hub.add(added, kept))


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))  # memory feeds no more of them


def _require_possible(tensors: tuple[Tensor, ...]) -> None:
    """Refuses, before anything is read, a state that no update could hold."""
    size = sum(tensor.memory.size for tensor in tensors)
    heads = sum(len(encode_spec(tensor.spec)) + RECORD_BYTES for tensor in tensors)
    if heads > HEADS_BYTES_MAX:
        raise UsageError(f"names and shapes of {len(tensors)} tensors take {heads} bytes: too much")
    if size + size // 1000 + heads > UPDATE_BYTES_MAX:
        raise UsageError(
            f"the state takes {size} bytes, an update holds {UPDATE_BYTES_MAX}: publish it in "
            "parts, by several publishers"
        )

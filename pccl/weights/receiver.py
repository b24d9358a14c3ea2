"""The other end of weight sync: brings a state to the newest revision, all of it or not at all.

Invariant: the tensors of a program change inside `pull` alone, and only to a state that was proven
to be the published one; whatever `pull` raises, they are as they were.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

from pccl.arguments import check_seconds
from pccl.base.clock import Deadline
from pccl.base.errors import Closed, DeadlineExceeded, RemoteError, UsageError
from pccl.reaching import check_advertised
from pccl.transport.address import Address, is_loopback, parse_address
from pccl.weights.applying import apply_updates, digest_of
from pccl.weights.channels import ENROL_S, Channels
from pccl.weights.door import require_allowed
from pccl.weights.errors import BaseMismatch, CorruptUpdate
from pccl.weights.fetcher import Fetcher
from pccl.weights.frames import ID_BYTES
from pccl.weights.layout import Tensor, tensors_of
from pccl.weights.loop_thread import START_S, LoopThread
from pccl.weights.store import Ready
from pccl.weights.update import parse

AHEAD_BYTES_MAX: Final = 1 << 30
KEEP_BYTES_MAX: Final = 1 << 30
Identity = tuple[tuple[str, int, int], ...]  # name, address and bytes of each tensor


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a `pull` did."""

    revision: int
    previous: int | None
    """The revision before; None if this is the receiver's first, or another publisher's."""
    digest: bytes
    """XXH3-128 over names, types, shapes and every bit, as `Published` has it."""
    updates: int
    """How many updates were applied; 0: the tensors held the newest revision already."""
    anchor: bool
    """Whether the first of them was a full copy."""
    update_bytes: int
    written: int
    """Elements written (a complex128 counts as two, one that is in two updates twice)."""


@dataclass(frozen=True, slots=True)
class _Applied:
    lineage: bytes
    revision: int
    digest: bytes
    where: Identity


class Receiver:
    """Receives the revisions of one publisher; never votes, and nobody waits for it.  Thread-safe;
    one `pull` at a time.

    Costs the memory of the updates that are fetched ahead or kept for others, and while a `pull`
    proves its result that of the largest tensor.
    """

    def __init__(
        self,
        address: str,
        *,
        relay: bool = True,
        listen: str = "127.0.0.1:0",
        advertise: str = "",
        insecure: bool = False,
        ahead_bytes_max: int = AHEAD_BYTES_MAX,
        keep_bytes_max: int = KEEP_BYTES_MAX,
        context: ssl.SSLContext | None = None,
        ticket: str | None = None,
        coordinator: str | None = None,
        identity: str | os.PathLike[str] | None = None,
        enrol_timeout_s: float = ENROL_S,
    ) -> None:
        """Begins to look for the publisher, in the background.

        Args:
            address: host:port of the publisher.
            relay: whether other receivers may fetch from this one.
            listen: host:port for them; port 0: any.  Receivers on other machines need an address
                that they can reach.
            advertise: the host under which they reach it, without a port; "": as the publisher sees
                it.  No wildcard, and loopback only with a publisher there.
            insecure: allows a listener that other machines can reach, unencrypted.
            ahead_bytes_max: of updates fetched before a `pull` asks for them.
            keep_bytes_max: of applied updates kept for others.
            context: encrypts the way to the publisher, if that has one too.
            ticket: of a secured run, for a receiver or a trainer: as the publisher's.
            coordinator, identity, enrol_timeout_s: as the publisher's; two receivers at a time
                need two keys.

        Raises:
            UsageError: an argument is not as described, or it cannot listen there.
            ConnectError: no coordinator gave a certificate in time, or it refused the ticket.
        """
        publisher = parse_address(address)
        where = parse_address(listen, port_min=0)
        if advertise:
            bare = advertise.strip("[]")
            advertise = parse_address(f"[{bare}]:1" if bare.count(":") > 1 else f"{bare}:1").host
            check_advertised(advertise, advertise, local=is_loopback(publisher.host))
        channels = Channels.parse(context, ticket, coordinator, identity, publishes=False)
        if relay and not channels.ticketed:
            require_allowed(where.host, insecure)
        if ahead_bytes_max < 0 or keep_bytes_max < 0:
            raise UsageError("ahead_bytes_max and keep_bytes_max must not be negative")
        if relay and is_loopback(where.host) and not is_loopback(publisher.host):
            relay = False  # the publisher's other receivers could not reach it
        self._publisher = publisher
        self._listen = where if relay else None
        self._fetcher = Fetcher(
            publisher,
            receiver=channels.own_id or os.urandom(ID_BYTES),
            relay=relay,
            host=advertise,
            ahead_bytes_max=ahead_bytes_max,
            keep_bytes_max=keep_bytes_max,
            channels=channels,
        )
        self._channels = channels
        self._enrol_s = check_seconds("enrol_timeout_s", enrol_timeout_s)
        self._lock = threading.Lock()
        self._applied: _Applied | None = None
        self._closed = False
        self._loop = LoopThread(self._live, "pccl-receiver")
        self._loop.start(self._enrol_s + START_S)

    async def _live(self) -> None:
        await self._channels.begin(self._enrol_s)
        if self._listen is not None:
            await self._open(self._listen)
        self._loop.ready()
        await self._fetcher.run()

    async def _open(self, address: Address) -> None:
        try:
            await self._fetcher.open(address)
        except OSError as error:
            raise UsageError(f"cannot listen on {address}: {error.strerror or error}") from error

    @property
    def revision(self) -> int | None:
        """The revision that the last `pull` ended with; None before the first."""
        return None if self._applied is None else self._applied.revision

    @property
    def received_bytes(self) -> int:
        """Bytes of updates that have come, from whomever."""
        return self._fetcher.received.byte_count

    @property
    def sent_bytes(self) -> int:
        """Bytes of updates that were given to other receivers."""
        return self._fetcher.given.byte_count

    def pull(
        self,
        into: Mapping[str, Any],
        *,
        timeout_s: float = 60.0,
        at_least: int = 1,
        on_mismatch: Literal["raise", "anchor"] = "raise",
    ) -> Pulled:
        """Brings tensors to the newest revision that the publisher has told of when it is called.

        Args:
            into: numpy arrays or torch CPU tensors by name, contiguous and writable, with the
                publisher's names, dtypes and shapes.  Tensors that hold a revision that the
                publisher still has deltas from, whoever put it there, receive only those.
            timeout_s: for fetching; what has come by then is kept for the next `pull`.
            at_least: waits for this revision or a newer one; word of one that was published this
                very moment may still be under way.
            on_mismatch: what to do if the tensors do not hold what updates build on, because the
                program has written to them or another publisher has taken over: "raise", or be
                overwritten by an anchor.

        Returns:
            Pulled.  With `updates` 0 nothing was newer, and nothing was read or written.

        Raises:
            DeadlineExceeded: not everything came within the time; the text has the last trouble.
            BaseMismatch: see `on_mismatch`.
            CorruptUpdate: the publisher's updates do not lead to what it promises.
            UsageError: a tensor is unusable or differs from what is published.
            Closed: after `close`.  Forked: in a fork of the process that made it.
            In each case no tensor was changed.

        Cost: reads the state once, decodes the updates twice; the first pull reads it once more.
        Source: SparseRL-Sync (arXiv 2605.07330), PULSE (arXiv 2602.03839).
        """
        if on_mismatch not in ("raise", "anchor"):
            raise UsageError(f'on_mismatch is "raise" or "anchor", not {on_mismatch!r}')
        if not timeout_s > 0 or at_least < 1:
            raise UsageError("timeout_s must be above 0, at_least 1 or more")
        self._loop.require_here()
        tensors = tensors_of(into, writable=True)
        deadline = Deadline(timeout_s)
        with self._lock:
            if self._closed:
                raise Closed("the receiver is closed; make a new one")
            base = self._base_of(tensors)
            state_bytes = sum(tensor.memory.size for tensor in tensors)
            ready = self._ready(base, at_least, state_bytes, deadline)
            if not ready.holdings:
                return self._up_to_date(tensors, ready, base)
            if self._taken_over(ready) and on_mismatch == "raise":
                raise BaseMismatch(
                    "another publisher serves now, and knows nothing of the revision "
                    f'{self.revision} that the tensors hold; pull with on_mismatch="anchor"'
                )
            try:
                return self._apply(tensors, ready)
            except BaseMismatch:
                if on_mismatch == "raise":
                    raise
            return self._apply(tensors, self._ready(None, at_least, state_bytes, deadline))

    def close(self, timeout_s: float = 5.0) -> None:
        """Ends the receiver's connections; those that fetch from it go elsewhere.  Idempotent."""
        self._closed = True
        self._loop.stop(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _base_of(self, tensors: tuple[Tensor, ...]) -> bytes:
        """What the tensors hold: what was put there, or, where that is not known, their digest."""
        if self._applied is not None and self._applied.where == _identity(tensors):
            return self._applied.digest
        return digest_of(tensors)

    def _taken_over(self, ready: Ready) -> bool:
        applied = self._applied
        return applied is not None and applied.lineage != ready.lineage and not ready.base_known

    def _ready(
        self, base: bytes | None, at_least: int, state_bytes: int, deadline: Deadline
    ) -> Ready:
        waiting = self._fetcher.ready(base, at_least, state_bytes)
        try:
            return self._loop.wait_for(waiting, max(0.001, deadline.remaining_s()))
        except TimeoutError:
            trouble = self._fetcher.trouble or self._fetcher.newest_in_words
            raise DeadlineExceeded(
                f"no update was complete in time; what has come is kept; last trouble: {trouble}"
            ) from None

    def _apply(self, tensors: tuple[Tensor, ...], ready: Ready) -> Pulled:
        numbers = [holding.manifest.update for holding in ready.holdings]
        try:
            updates = [
                parse(holding.view, state_bytes_max=holding.manifest.state_bytes)
                for holding in ready.holdings
            ]
            for update, holding in zip(updates, ready.holdings, strict=True):
                if update.digest != holding.manifest.digest:
                    raise CorruptUpdate(f"revision {update.revision} is not what was announced")
            written = apply_updates(tensors, updates)
        except RemoteError as error:
            self._loop.call(lambda: self._fetcher.discard(numbers))
            if isinstance(error, CorruptUpdate):
                raise
            raise CorruptUpdate(error.reason) from error
        digest = updates[-1].digest
        previous = self._remember(tensors, ready, digest)
        self._loop.call(lambda: self._fetcher.applied(digest, numbers))
        return Pulled(
            revision=ready.revision,
            previous=previous,
            digest=digest,
            updates=len(updates),
            anchor=ready.holdings[0].manifest.is_anchor,
            update_bytes=sum(h.manifest.byte_count for h in ready.holdings),
            written=written,
        )

    def _up_to_date(self, tensors: tuple[Tensor, ...], ready: Ready, base: bytes) -> Pulled:
        previous = self._remember(tensors, ready, base)
        return Pulled(ready.revision, previous, base, 0, False, 0, 0)

    def _remember(self, tensors: tuple[Tensor, ...], ready: Ready, digest: bytes) -> int | None:
        before = self._applied
        self._applied = _Applied(ready.lineage, ready.revision, digest, _identity(tensors))
        known = before is not None and before.lineage == ready.lineage
        return before.revision if known and before is not None else None


def _identity(tensors: tuple[Tensor, ...]) -> Identity:
    return tuple((t.spec.name, t.buffer.address, t.memory.size) for t in tensors)

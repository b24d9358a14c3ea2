"""Brings newcomers to the members' state, by ordinary committed steps.

    pccl.sync        tiny: who needs the state, who has it, what it looks like
    pccl.sync.data   only if somebody needs it: sources contribute their bytes, the others zeros,
                     and the maximum of unsigned bytes is the sources' bytes again

Theory.  Whoever decides here decides from committed results, so every member takes the same way.
All sources hold the same bits, so any of them may die at any moment: the retried step still has
the same maximum.  If all die, the committed count of sources is 0, nobody writes anything, and
another round begins.  If nobody holds the state (the run is new), the peer with the highest key is
the one source, chosen in the committed first step: a later change of view cannot change the choice.
A newcomer may hold the bulk of the state already, which it has fetched beside the run; if all are
such, only the rest is brought, and a digest of the bulk: where it differs (what was fetched was
another state of the same form), all of it is.  Whoever holds parts only, of a fetch that broke off,
is elected last, and its parts become nobody's state.

Invariant: an array of the caller is written at most once, at the end, with bytes whose hash the
sources agreed on.
"""

from __future__ import annotations

import ctypes
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pccl.base.errors import (
    CannotCatchUp,
    CorruptResult,
    Excluded,
    PcclError,
    StepFailed,
    UsageError,
)
from pccl.base.log import get_logger
from pccl.collectives.buffers import Buffer, describe_pair
from pccl.communicator import Communicator
from pccl.state.catching_up import HOLD_PART

ENTRY = "pccl.sync"
ROUNDS_MAX = 16  # every further round means that all sources died within one step
KEY_MASK = (1 << 64) - 1
KEY_OF_BULK = 1 << 63  # in keys of those who hold the bulk: if no member is left, they go on
KEY_OF_WHOLE = 1 << 62  # in keys of all but those who hold parts

_log = get_logger("state")

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


class Held(IntEnum):
    """What a peer holds of the members' state as it comes to an entry."""

    TORN = -1  # parts of it, which are no state: as nothing, and nobody's start
    NOTHING = 0
    BULK = 1
    ALL = 2


@dataclass(frozen=True, slots=True)
class _Survey:
    """What the first step found, the same on every member."""

    newcomers: int  # that hold nothing
    halves: int  # that hold the bulk
    synced: int
    layout: int  # of the synced members, or of the elected source
    elected: int  # key of the source if nobody is synced


def sync_state(
    comm: Communicator,
    arrays: Mapping[str, Any],
    synced: bool,
    *,
    timeout_s: float | None = None,
) -> bool:
    """Gives every newcomer the members' state; a collective call, made by all at the same place.

    Args:
        arrays: the state by name, as accepted by `all_reduce`, writable; names, dtypes and shapes
            alike on all peers.  A newcomer's arrays are overwritten.  Members hold equal bits.
        synced: whether this process holds the state already.  If nobody does, one peer's arrays
            become the state.
        timeout_s: for each of the two steps.

    Returns:
        True: this process now holds the state.

    Raises:
        UsageError: an array is unusable, or this newcomer's layout is not the members'; it has
            then left the run, and the others go on.
        CorruptResult: the members' states differ; nothing was written.

    Cost: a step of 64 bytes while nobody needs anything; else memory and traffic of one all-reduce
    of the whole state.
    """
    held = Held.ALL if synced else Held.NOTHING
    return bring(comm, {}, arrays, lambda: held, timeout_s=timeout_s) or True


def bring(
    comm: Communicator,
    bulk: Mapping[str, Any],
    rest: Mapping[str, Any],
    held: Callable[[], Held],
    *,
    digest: Callable[[], int] = lambda: 0,
    late: Callable[[], None] = lambda: None,
    hold_s: float | None = None,
    timeout_s: float | None = None,
) -> bool:
    """As `sync_state` of `bulk` and `rest` together, for who may hold the bulk already.

    Args:
        held: called when the first step has begun, so once this peer is in.
        digest: of the bulk, 64 bits; called where some hold no more than the bulk.
        late: called where this peer is in, and holds less than members that are in already.
        hold_s: how long these wait for this peer, if it is a newcomer, in a data step, HOLD_PART of
            its time-out at most; then it steps back, and they go on.

    Returns:
        True: this process's bulk was written.

    Raises: as `sync_state`; CorruptResult if nobody holds more than parts, and CannotCatchUp if it
        did not come in `hold_s`; it has left then.
    """
    arrays = {**bulk, **rest}
    if len(arrays) < len(bulk) + len(rest):
        raise UsageError("a name of the state is used twice")
    names = sorted(arrays)
    buffers = {name: describe_pair(arrays[name], None)[0] for name in names}
    layout = _layout_hash(names, list(buffers.values()))
    key = int.from_bytes(bytes(comm.peer_id)[:8], "little") & (KEY_OF_WHOLE - 1) | 1
    for _ in range(ROUNDS_MAX):
        survey, mine, own = _survey(comm, layout, key, held, timeout_s)
        if survey.newcomers + survey.halves == 0:
            return False
        if not survey.synced and not survey.elected & (KEY_OF_BULK | KEY_OF_WHOLE):
            raise _only_parts(comm)
        if survey.synced and mine is not Held.ALL:
            late()
        source = mine is Held.ALL if survey.synced else own == survey.elected
        if layout != survey.layout:
            comm.close()
            raise UsageError(
                "names, dtypes or shapes of this process's state differ from the members'; it has "
                "left the run"
            )
        held_s = None if mine is Held.ALL or not survey.synced else _held(comm, hold_s, timeout_s)
        all_of_it = survey.newcomers > 0 or not survey.synced
        given = [buffers[name] for name in names if all_of_it or name in rest]
        told = [] if all_of_it else [digest()]
        ours = source, mine is Held.ALL
        began_s = time.monotonic()
        try:
            came = _transfer(comm, given, *ours, told, timeout_s, held_s)
            if came is _Came.OTHER_BULK:
                _log.warning("a newcomer has fetched another state than this: it is given all")
                all_of_it, given = True, [buffers[name] for name in names]
                began_s = time.monotonic()
                came = _transfer(comm, given, *ours, [], timeout_s, held_s)
        except Excluded as error:
            if held_s is None or time.monotonic() < began_s + held_s:
                raise
            raise _too_slow(comm, given, held_s, error) from error
        if came is _Came.ALL:
            return all_of_it and not source and mine is not Held.ALL
    raise StepFailed(f"all holders of the state died in {ROUNDS_MAX} rounds, one after another")


def _held(comm: Communicator, hold_s: float | None, timeout_s: float | None) -> float | None:
    """Returns how long members wait for this peer: so long that their step is not over with it."""
    step_s = comm.session.step_timeout_s if timeout_s is None else timeout_s
    return None if hold_s is None else min(hold_s, HOLD_PART * step_s)


def _only_parts(comm: Communicator) -> CorruptResult:
    comm.close()
    return CorruptResult(
        "all who held the state died while it was fetched, which has left parts of it here and "
        "nothing whole anywhere; this process has left the run: begin with a new state"
    )


def _too_slow(
    comm: Communicator, given: list[Buffer], hold_s: float, error: PcclError
) -> CannotCatchUp:
    """What a newcomer is told that has stepped back; it has left then."""
    comm.close()
    byte_count = sum(buffer.byte_count for buffer in given)
    needed = byte_count / hold_s
    return CannotCatchUp(
        f"{byte_count} bytes of the members' state have not come here in the {hold_s:.3g} s for "
        f"which they wait ({error}); a pace of {needed / 1e6:.3g} MB/s would do; this process has "
        "left the run",
        pace_bytes_per_s=0.0,
        needed_bytes_per_s=needed,
    )


def _survey(
    comm: Communicator, layout: int, key: int, held: Callable[[], Held], timeout_s: float | None
) -> tuple[_Survey, Held, int]:
    """Returns what was found, what this peer held, and its key."""
    proposed = np.array([layout, ~layout & KEY_MASK], np.uint64)
    with comm.step(ENTRY, timeout_s) as step:
        mine = held()
        own_key = key | (KEY_OF_BULK if mine is Held.BULK else 0)
        own_key |= KEY_OF_WHOLE if mine is not Held.TORN else 0
        kinds = (Held.NOTHING, Held.BULK, Held.ALL)
        counts = np.array([max(mine, Held.NOTHING) is kind for kind in kinds], np.uint64)
        # A value and its complement under max: equal to the own ones iff all contributors' are.
        layouts = proposed.copy() if mine is Held.ALL else np.zeros(2, np.uint64)
        own = np.array([0 if mine is Held.ALL else own_key], np.uint64)
        step.all_reduce(counts, op="sum")
        step.all_reduce(layouts, op="max")
        step.all_reduce(own, op="max")
        step.all_reduce(proposed, op="max")
    newcomers, halves, members = map(int, counts)
    first = layouts if members else proposed
    if not _agreed(first):
        raise UsageError("names, dtypes or shapes of the state differ between the peers")
    return _Survey(newcomers, halves, members, int(first[0]), int(own[0])), mine, own_key


class _Came(Enum):
    """What a data step has done, alike on all."""

    NOTHING = 0  # no source took part
    OTHER_BULK = 1  # the bulk is not the same everywhere; nothing was written
    ALL = 2


def _transfer(
    comm: Communicator,
    buffers: list[Buffer],
    source: bool,
    synced: bool,
    bulk: list[int],
    timeout_s: float | None,
    held_s: float | None,
) -> _Came:
    """Runs the data step.

    Args:
        bulk: a digest of what all have, as far as is known; or none.
        held_s: for so long the members wait for this peer; None: it is one of them.
    """
    state = [_bytes_of(buffer) for buffer in buffers]
    content = _content_hash(state) if source else 0
    sources = np.array([source], np.uint64)
    content_words = np.array([content, ~content & KEY_MASK] if source else [0, 0], np.uint64)
    bulk_words = np.array([[word, ~word & KEY_MASK] for word in bulk], np.uint64)
    received = [np.zeros(part.size, np.uint8) for part in state]
    with comm.step(f"{ENTRY}.data", timeout_s) as step:
        if held_s is not None:
            why = f"the state has not come to it in {held_s:.3g} s"
            step.ticket.step_back_after(why, held_s)
        step.all_reduce(sources, op="sum")
        step.all_reduce(content_words, op="max")
        if bulk:
            step.all_reduce(bulk_words, op="max")
        for part, target in zip(state, received, strict=True):
            step.all_reduce(part if source else target, op="max", out=target)
    if int(sources[0]) == 0:
        return _Came.NOTHING
    if bulk and not _agreed(bulk_words[0]):
        return _Came.OTHER_BULK
    if not _agreed(content_words) or _content_hash(received) != int(content_words[0]):
        raise CorruptResult("the states of the members differ; no newcomer was given any")
    if not source and not synced:
        for part, target in zip(state, received, strict=True):
            part[:] = target
    return _Came.ALL


def _agreed(pair: Words) -> bool:
    return int(pair[0]) == ~int(pair[1]) & KEY_MASK


def _layout_hash(names: list[str], buffers: list[Buffer]) -> int:
    text = "\n".join(
        f"{name!r} {buffer.dtype.label} {buffer.shape}"
        for name, buffer in zip(names, buffers, strict=True)
    )
    return _word(hashlib.blake2b(text.encode(), digest_size=8))


def _content_hash(parts: list[Bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.data)
    return _word(digest)


def _word(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "little")


def _bytes_of(buffer: Buffer) -> Bytes:
    """Views the memory of any array as unsigned bytes; the Buffer must outlive the view."""
    if buffer.byte_count == 0:
        return np.zeros(0, np.uint8)
    raw = (ctypes.c_uint8 * buffer.byte_count).from_address(buffer.address)
    return np.ctypeslib.as_array(raw)

"""Sparse contributions among the members: all of them, or their mean.

    all_gather   header and payload of each; one step, bytes grow with the number of members
    all_reduce   the same and then a mean; or, where that moves fewer bytes, the dense sums of
                 values and of weights.  The members' number decides, so all take the same way

An all-gather depends on the members: if one is lost, the step ends on all of them with ViewChanged
and is done again with those who are left, until the time is over.

Invariant: a result is made of committed contributions, in rank order, so all members get the same
bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pccl.arguments import check_number
from pccl.base.clock import Deadline
from pccl.base.errors import (
    CorruptResult,
    DescriptorMismatch,
    NonFiniteContribution,
    UsageError,
    ViewChanged,
)
from pccl.collectives.buffers import describe
from pccl.collectives.dtypes import Dtype
from pccl.collectives.nonfinite import NonFinite, count_not_finite, parse_policy
from pccl.collectives.ops import ReduceOp, check_weight
from pccl.communicator import Communicator
from pccl.outcome import Outcome, Peer
from pccl.sparse.blocks import BLOCK_MAX, Floats
from pccl.sparse.code import Sparse, SparseCode, divided
from pccl.sparse.packing import Bytes
from pccl.step import Step

HEADER = struct.Struct("<dQQ")  # weight, whether left out, digest of shapes and settings
DENSE_BYTES = 8  # per element: a value and a weight
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SparseGathered:
    """What an all-gather brought, the same on all members.

    Attributes:
        contributions: for each contributor, in rank order, its part of each tensor.
        weights: of each; 0 for one that was left out.
        left_out: who had an Inf or a NaN and counts for nothing.
        outcome: the committed step's.
    """

    contributions: tuple[tuple[Sparse, ...], ...]
    weights: tuple[float, ...]
    left_out: tuple[Peer, ...]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SparseReduced:
    """What an all-reduce brought.

    Attributes:
        mean: one f32 array per tensor, of its shape: the weighted mean over those who sent an
            element, zero where nobody did.  The same bits on all members.
        sent: what this peer has sent, one f32 array per tensor, zero elsewhere; subtract it from
            what you gave, and what remains is yours to send later (error feedback).  Zero if this
            peer was left out.
        left_out: how many contributions counted for nothing.
        dense: whether dense sums were exchanged.
        outcome: the committed step's.
    """

    mean: tuple[Floats, ...]
    sent: tuple[Floats, ...]
    left_out: int
    dense: bool
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Contribution:
    """What this peer brings."""

    peer: Peer
    code: SparseCode
    shapes: tuple[tuple[int, ...], ...]
    data: Bytes
    weight: float
    left_out: bool

    @property
    def message(self) -> Bytes:
        header = HEADER.pack(self.weight, self.left_out, self.code.digest)
        return np.concatenate([np.frombuffer(header, np.uint8), self.data])


def all_gather(
    comm: Communicator,
    tensors: Sequence[Any],
    *,
    top_k: int,
    value_bits: int,
    weight: float,
    nonfinite: str,
    timeout_s: float,
) -> SparseGathered:
    """See `Communicator.sparse_all_gather`."""
    with comm.session.told_if_refused("sparse_all_gather"):
        policy = parse_policy(nonfinite)
        own = _contribution(comm.peer_id, tensors, top_k, value_bits, weight, policy)
    name = f"sparse_all_gather({own.code.digest:016x})"
    deadline = Deadline(timeout_s)

    def gather(step: Step) -> Callable[[], SparseGathered]:
        work = step.all_gather(own.message)
        return lambda: _gathered(own.code, work.result, step.outcome)

    found = _until_committed(comm, name, deadline, gather)
    _refuse(policy, len(found.left_out), ", ".join(map(str, found.left_out)))
    return found


def all_reduce(
    comm: Communicator,
    tensors: Sequence[Any],
    *,
    top_k: int,
    value_bits: int,
    weight: float,
    nonfinite: str,
    timeout_s: float,
) -> SparseReduced:
    """See `Communicator.sparse_all_reduce`."""
    with comm.session.told_if_refused("sparse_all_reduce"):
        policy = parse_policy(nonfinite)
        own = _contribution(comm.peer_id, tensors, top_k, value_bits, weight, policy)
    name = f"sparse_all_reduce({own.code.digest:016x})"
    deadline = Deadline(timeout_s)

    def reduce(step: Step) -> Callable[[], tuple[SparseReduced, str]]:
        way = _dense if dense_is_cheaper(own.code, step.world_size) else _sparse
        return way(own, step)

    found, who = _until_committed(comm, name, deadline, reduce)
    _refuse(policy, found.left_out, who)
    return found


def dense_is_cheaper(code: SparseCode, world_size: int) -> bool:
    """Says whether each member sends fewer bytes by dense sums than by its contribution to all."""
    others = world_size - 1
    gathered = others * (HEADER.size + code.encoded_bytes)
    return gathered > 2 * others * DENSE_BYTES * sum(code.sizes) / world_size


# ---- the two ways


def _sparse(own: _Contribution, step: Step) -> Callable[[], tuple[SparseReduced, str]]:
    work = step.all_gather(own.message)

    def conclude() -> tuple[SparseReduced, str]:
        found = _gathered(own.code, work.result, step.outcome)
        mean = own.code.mean(found.contributions, found.weights)
        who = ", ".join(map(str, found.left_out))
        return _reduced(own, mean, len(found.left_out), False, step.outcome), who

    return conclude


def _dense(own: _Contribution, step: Step) -> Callable[[], tuple[SparseReduced, str]]:
    """Sums in rank order, as the other way has them."""
    parts = own.code.decode(own.data)
    if own.weight == 0:  # 0 x NaN would be NaN; the other way does not look at it
        parts = [Sparse(part.indices, np.zeros_like(part.values)) for part in parts]
    values = np.concatenate(own.code.dense(parts))
    weights = np.zeros(values.size, np.float32)
    for part, begin in zip(parts, np.cumsum([0, *own.code.sizes[:-1]]), strict=True):
        weights[begin + part.indices] = own.weight
    values *= np.float32(own.weight)
    left_out = np.array([own.left_out], np.uint64)
    # Of those that are left out, the one whose id is the highest is named.
    named = np.array([int.from_bytes(own.peer[:8], "big") if own.left_out else 0], np.uint64)
    # A value and its complement under max: equal to the own ones iff all are equal.
    digest = np.array([own.code.digest, ~own.code.digest & (1 << 64) - 1], np.uint64)
    step.all_reduce(values, op="sum", deterministic=True)
    step.all_reduce(weights, op="sum", deterministic=True)
    step.all_reduce(left_out, op="sum")
    step.all_reduce(digest, op="max")
    step.all_reduce(named, op="max")

    def conclude() -> tuple[SparseReduced, str]:
        if int(digest[0]) != own.code.digest or int(digest[0]) ^ int(digest[1]) != (1 << 64) - 1:
            raise DescriptorMismatch("the members' tensors or settings differ", step=step.number)
        mean = np.split(divided(values, weights), np.cumsum(own.code.sizes)[:-1])
        who = str(Peer(int(named[0]).to_bytes(8, "big")))
        return _reduced(own, mean, int(left_out[0]), True, step.outcome), who

    return conclude


def _reduced(
    own: _Contribution, mean: Sequence[Floats], left_out: int, dense: bool, outcome: Outcome
) -> SparseReduced:
    if own.left_out or own.weight == 0:
        sent = [np.zeros(size, np.float32) for size in own.code.sizes]
    else:
        sent = own.code.dense(own.code.decode(own.data))
    return SparseReduced(
        tuple(flat.reshape(shape) for flat, shape in zip(mean, own.shapes, strict=True)),
        tuple(flat.reshape(shape) for flat, shape in zip(sent, own.shapes, strict=True)),
        left_out,
        dense,
        outcome,
    )


# ---- what they share


def _contribution(
    peer: Peer,
    tensors: Sequence[Any],
    top_k: int,
    value_bits: int,
    weight: float,
    policy: NonFinite,
) -> _Contribution:
    if hasattr(tensors, "shape"):  # its rows would be taken for tensors
        raise UsageError("tensors is a list of tensors; for a single one pass [tensor]")
    weight = check_weight(weight, ReduceOp.AVG)
    top_k = check_number("top_k", top_k, 1, BLOCK_MAX)
    value_bits = check_number("value_bits", value_bits, 1)
    flats, shapes, found = [], [], 0
    for number, tensor in enumerate(tensors):
        buffer = describe(tensor, name=f"tensor {number}")
        if buffer.dtype is not Dtype.F32:
            raise UsageError(f"tensor {number} is {buffer.dtype.label}; sparse exchange takes f32")
        flats.append(_as_array(tensor))
        found += count_not_finite(buffer, policy)
        shapes.append(buffer.shape)
    if not flats:
        raise UsageError("no tensors are given")
    code = SparseCode(shapes, top_k, value_bits)
    left_out = found > 0 and policy is not NonFinite.ALLOW
    if left_out:  # zeros: what is not finite would spoil a table of levels, too
        flats = [np.zeros(flat.size, np.float32) for flat in flats]
    data = code.encode(flats)
    return _Contribution(
        peer, code, tuple(shapes), data, 0.0 if left_out else float(weight), left_out
    )


def _as_array(tensor: Any) -> Floats:
    """Views a numpy array or torch tensor of the CPU as a flat array."""
    flat = tensor if isinstance(tensor, np.ndarray) else np.from_dlpack(_detached(tensor))
    return np.asarray(flat.reshape(-1), np.float32)


def _detached(tensor: Any) -> Any:
    return tensor.detach() if hasattr(tensor, "detach") else tensor


def _until_committed(
    comm: Communicator,
    name: str,
    deadline: Deadline,
    post: Callable[[Step], Callable[[], _T]],
) -> _T:
    while True:
        try:
            with comm.step(name, max(deadline.remaining_s(), 1e-3)) as step:
                conclude = post(step)
        except ViewChanged:
            if deadline.passed():
                raise
            continue
        return conclude()


def _gathered(code: SparseCode, rows: Any, outcome: Outcome) -> SparseGathered:
    contributions, weights, left_out = [], [], []
    for peer, row in zip(outcome.contributors, rows, strict=True):
        weight, dropped, digest = HEADER.unpack(row[: HEADER.size].tobytes())
        if digest != code.digest:
            raise DescriptorMismatch(
                f"the tensors or settings of peer {peer} differ from this peer's"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise CorruptResult(f"peer {peer} has sent a weight of {weight}")
        try:
            contributions.append(tuple(code.decode(row[HEADER.size :])))
        except ValueError as error:
            raise CorruptResult(f"what peer {peer} has sent cannot be decoded: {error}") from error
        weights.append(weight)
        if dropped:
            left_out.append(peer)
    return SparseGathered(tuple(contributions), tuple(weights), tuple(left_out), outcome)


def _refuse(policy: NonFinite, count: int, who: str) -> None:
    if count and policy is NonFinite.RAISE:
        whose = f" ({who})" if who else ""
        raise NonFiniteContribution(
            f"{count} of the members' contributions hold an Inf or a NaN{whose}; "
            "nothing was applied"
        )

"""One reduction of pseudo-gradients, as one step of the library: committed whole, or not at all.

    header   sum of int64: tokens, contributors left out for not being finite
    parity   max of a digest and of its complement: they fit together iff all digests are equal;
             and of the names of those whose contribution was not finite
    payload  average of f32, weighted by tokens

Invariant: until `Pending.wait` returns, nothing has changed but the payload; if it raises what all
members were told alike (StepFailed, DeadlineExceeded), the payload holds the contribution again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccl.base.errors import CorruptResult, NonFiniteContribution, UsageError
from pccl.base.numbers import whole_number
from pccl.collectives.nonfinite import NonFinite
from pccl.communicator import Communicator
from pccl.outcome import Outcome, Peer
from pccl.work import Work

MASK = (1 << 64) - 1
TOKENS_MAX = 1 << 53  # weights are doubles, which hold integers up to here


class StatesDiffer(CorruptResult):
    """The members' shared states differ; the mean was not applied, and the contributions that it
    was made of are gone."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How pseudo-gradients travel; alike on all peers.

    Attributes:
        codec: as in `Step.all_reduce`; None sends f32.
        deterministic: contributions are added in rank order, so that a run can be repeated.
        timeout_s: of each step; None takes the communicator's.
    """

    codec: str | None = None
    deterministic: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """What this peer brings to a reduction; `payload` is f32 and is reduced in place.

    Attributes:
        tokens: its weight; 0 for a joiner, which then has no say.
        left_out: it was not finite and counts for nothing.
    """

    payload: Tensor
    tokens: int
    left_out: bool


@dataclass(frozen=True, slots=True)
class Reduced:
    """What came of it, the same on all members.

    Attributes:
        mean: the payload, now the weighted mean; meaningless if `tokens` is 0.
        tokens, left_out: sums over the contributors.
        left_out_peers: of those that were left out, the one of the highest id.
        step: the number of the step.
    """

    mean: Tensor
    tokens: int
    left_out: int
    left_out_peers: tuple[Peer, ...]
    outcome: Outcome
    step: int


def check_tokens(tokens: int) -> int:
    """Returns a number of tokens.  Raises UsageError if it is none."""
    number = whole_number(tokens)
    if number is None:
        raise UsageError(f"tokens must be an integer, not {tokens!r}")
    if not 0 <= number <= TOKENS_MAX:
        raise UsageError(f"tokens must be within 0 to {TOKENS_MAX}, not {number}")
    return number


def contribution(payload: Tensor, tokens: int, policy: NonFinite) -> Contribution:
    """Applies the policy.  A payload that counts for nothing is zeroed: 0 × NaN would be NaN."""
    left_out = policy is not NonFinite.ALLOW and not bool(torch.isfinite(payload).all())
    if left_out or tokens == 0:
        return Contribution(payload.zero_(), 0, left_out)
    return Contribution(payload, tokens, False)


def refuse_nonfinite(left_out: int, peers: Sequence[Peer], policy: NonFinite) -> None:
    """Raises NonFiniteContribution, if the policy says so, naming those that are known."""
    if left_out and policy is NonFinite.RAISE:
        among = "" if len(peers) == left_out else "among them "
        raise NonFiniteContribution(
            f"{left_out} of the members' pseudo-gradients hold an Inf or a NaN: {among}that of "
            f"peer {', '.join(map(str, peers))}"
        )


class Pending:
    """A reduction on its way; the program computes meanwhile."""

    def __init__(
        self,
        comm: Communicator,
        name: str,
        brought: Contribution,
        digest: int,
        wire: Wire,
    ) -> None:
        """Posts it.  Raises as `Communicator.step` on entering."""
        self.brought = brought
        self._header = np.array([brought.tokens, brought.left_out], np.int64)
        own = word_of(comm.peer_id) if brought.left_out else 0
        self._parity = np.array([digest, ~digest & MASK, own], np.uint64)
        options: dict[str, Any] = {} if wire.codec is None else {"codec": wire.codec}
        options["deterministic"] = wire.deterministic
        with comm.step(name, wire.timeout_s) as step:
            step.all_reduce(self._header, op="sum")
            step.all_reduce(self._parity, op="max")
            step.all_reduce(brought.payload, op="avg", weight=float(brought.tokens), **options)
            self._work: Work = step.commit_async()
        self._step = step.number

    def done(self) -> bool:
        """Says whether it is decided, without waiting."""
        return self._work.done()

    def wait(self) -> Reduced:
        """Waits for the outcome.

        Raises:
            StatesDiffer: nothing may be applied.
            PcclError: as `Work.wait`.
        """
        outcome = self._work.wait()
        if not digests_agree(int(self._parity[0]), int(self._parity[1])):
            raise StatesDiffer("the members' shared states differ; no outer step was applied")
        tokens, left_out = map(int, self._header)
        word = int(self._parity[2])
        peers = tuple(peer for peer in outcome.contributors if left_out and word_of(peer) == word)
        return Reduced(self.brought.payload, tokens, left_out, peers, outcome, self._step)


def word_of(peer: bytes) -> int:
    """Returns the first 64 bits of a peer's id."""
    return int.from_bytes(bytes(peer)[:8], "big")


def digests_agree(largest: int, largest_complement: int) -> bool:
    """Says whether a maximum of digests, and one of their complements, are of equal ones."""
    return largest == ~largest_complement & MASK


def digest_of(tensors: Iterable[Tensor], counters: Any) -> int:
    """Returns a hash of 64 bits over shared state (BLAKE2b), some 1 GB/s."""
    hasher = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        if tensor.numel():
            hasher.update(tensor.numpy().data)
    hasher.update(counters.tobytes())
    return int.from_bytes(hasher.digest(), "little")

"""Applies updates to a state all together or not at all.  Pure: memory in, memory out.

First every tensor is brought forward in scratch memory of one tensor's size and its digest is
compared with what the publisher promised, and then all digests with that of the whole state.  Only
when all are right are the same bytes written to the caller's tensors, by code that has just run on
them without an error.

Invariant: the caller's tensors are written only after the whole result has been proven; an
interrupt while they are written leaves a mixture that applying the same updates again mends, for
values are absolute.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pccl.base.errors import UsageError
from pccl.weights.errors import BaseMismatch, CorruptUpdate
from pccl.weights.layout import Tensor, difference, state_digest, tensor_digest
from pccl.weights.update import Kind, Record, Update

Work = list[tuple[Tensor, list[Record]]]


def apply_updates(tensors: Sequence[Tensor], updates: Sequence[Update]) -> int:
    """Brings a state forward by updates that follow one another.

    Args:
        tensors: the caller's, writable, in order of their names.
        updates: at least one; the first may be an anchor.

    Returns:
        How many cells were written.

    Raises:
        UsageError: names, types or shapes differ; the text names the first difference.
        BaseMismatch: the tensors do not hold what the first update builds on.
        CorruptUpdate: the updates do not lead to what they promise.
        In each case the tensors are as they were.

    Cost: reads the state once for its digests, decodes the updates twice.
    """
    assert updates
    work = _work(tensors, updates)
    wrong = _first_wrong(work, updates[-1])
    if wrong is not None:
        if updates[0].kind == Kind.DELTA and digest_of(tensors) != updates[0].base:
            raise BaseMismatch(
                "the tensors are not those of the revision that the updates build on: something "
                'else has written to them; pull with on_mismatch="anchor" to have them overwritten'
            )
        raise CorruptUpdate(f"revision {updates[-1].revision} cannot be rebuilt: {wrong}")
    return sum(
        section.put_into(tensor.memory, tensor.spec.cell_bytes)
        for tensor, records in work
        for record in records
        for section in record.sections
    )


def digest_of(tensors: Sequence[Tensor]) -> bytes:
    """Returns the digest of a state.  Cost: one read of it."""
    return state_digest(
        [tensor.spec for tensor in tensors], [tensor_digest(t.memory) for t in tensors]
    )


def _work(tensors: Sequence[Tensor], updates: Sequence[Update]) -> Work:
    """Which records concern which tensor, in order; what does not fit is refused here."""
    if updates[0].kind == Kind.ANCHOR:
        expected = [record.spec for record in updates[0].records.values()]
        found = difference(expected, [tensor.spec for tensor in tensors])
        if found is not None:
            raise UsageError(f"the tensors do not fit what is published: {found}")
    specs = {tensor.spec.name: tensor.spec for tensor in tensors}
    for before, update in zip((None, *updates), updates, strict=False):
        if before is not None and (update.kind != Kind.DELTA or update.base != before.digest):
            raise CorruptUpdate(f"revision {update.revision} does not follow {before.revision}")
        if update.tensors != len(tensors):
            raise UsageError(f"{update.tensors} tensors are published, {len(tensors)} were given")
        for name, record in update.records.items():
            if specs.get(name) != record.spec:
                has = specs.get(name, "none")
                raise UsageError(f"{name} is published as {record.spec}, and here it is {has}")
    return [
        (tensor, [u.records[tensor.spec.name] for u in updates if tensor.spec.name in u.records])
        for tensor in tensors
    ]


def _first_wrong(work: Work, last: Update) -> str | None:
    """Proves the result in scratch memory; returns what is wrong with it first, or None."""
    scratch = np.empty(max((t.memory.size for t, records in work if records), default=0), np.uint8)
    digests = []
    for tensor, records in work:
        if not records:
            digests.append(tensor_digest(tensor.memory))
            continue
        result = scratch[: tensor.memory.size]
        result[:] = tensor.memory
        for record in records:
            for section in record.sections:
                section.put_into(result, tensor.spec.cell_bytes)
        digests.append(tensor_digest(result))
        if digests[-1] != records[-1].digest:
            return f"{tensor.spec.name} has another digest"
    specs = [tensor.spec for tensor, _ in work]
    return None if state_digest(specs, digests) == last.digest else "the state has another digest"

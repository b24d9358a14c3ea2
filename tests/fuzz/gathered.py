"""Fuzz targets of what members send each other within collectives: sparse contributions, and what
each says of its state before a sync.  A peer that has gone mad sends what it likes there."""

from __future__ import annotations

import contextlib
from functools import cache

import numpy as np

from pccl.base.errors import RemoteError, UsageError
from pccl.sparse.code import VALUE_BITS, SparseCode
from pccl.state.agreement import RECORD_BYTES, Record, Strategy, agree
from tests.fuzz.drawing import Source

SHAPES = (((),), ((5,), (0, 3)), ((3, 2), (6,)), ((8, 8),), ((64, 2), (7,), ()))
KEPT = (1, 3, 64)
MEMBERS_MAX = 8


@cache
def _code(shapes: int, kept: int, bits: int) -> SparseCode:
    return SparseCode(SHAPES[shapes], KEPT[kept], VALUE_BITS[bits])


def sparse_code(data: bytes) -> None:
    """Any bytes as entries of some tensors, of the right number and of a wrong one."""
    source = Source(data)
    chosen = (source.below(len(SHAPES)), source.below(len(KEPT)), source.below(len(VALUE_BITS)))
    code, wrong, rest = _code(*chosen), source.chance(8), source.rest()
    size = len(rest) if wrong else code.encoded_bytes
    content = np.frombuffer((rest * (size // (len(rest) or 1) + 1))[:size].ljust(size), np.uint8)
    try:
        parts = code.decode(content)
    except ValueError:
        return
    assert content.size == code.encoded_bytes, "of another size than all others send"
    for part, tensor in zip(parts, code.tensors, strict=True):
        assert part.indices.shape == part.values.shape == (tensor.sent,)
        assert part.values.dtype == np.float32
        assert np.unique(part.indices).size == tensor.sent, "an entry comes twice"
        assert not tensor.sent or 0 <= part.indices.min() <= part.indices.max() < tensor.size
    with np.errstate(all="ignore"):  # of any floats; none of them is told from another here
        means = code.mean([parts, parts], [1.0, 1.0])
    for mean, dense, tensor in zip(means, code.dense(parts), code.tensors, strict=True):
        assert mean.shape == dense.shape == (tensor.size,)
        same = np.abs(dense) < np.float32(1e38)  # twice as much is still a number
        assert np.array_equal(mean[same], dense[same]), "the mean of two that are alike"


def sparse_seeds() -> list[bytes]:
    """What is sent of some small tensors, in each width of values."""
    found = []
    for shapes in range(len(SHAPES)):
        for bits in range(len(VALUE_BITS)):
            code = _code(shapes, 1, bits)
            parts = [np.arange(size, dtype=np.float32) - size // 3 for size in code.sizes]
            found.append(bytes((shapes, 1, bits, 0)) + code.encode(parts).tobytes()[:500])
    return found


def state_records(data: bytes) -> None:
    """What a few members say of their states; whoever lies, the decision makes sense."""
    source = Source(data)
    table: list[Record] = []
    while source and len(table) < MEMBERS_MAX:
        row = source.take(RECORD_BYTES)
        if table and len(row) == 1:  # the same as the first, for agreements
            table.append(table[0])
            continue
        try:
            table.append(Record.unpack(row.ljust(RECORD_BYTES, b"\0")))
        except RemoteError:
            continue
        assert Record.unpack(table[-1].pack()) == table[-1]
    if not table:
        return
    with contextlib.suppress(UsageError):
        found = agree(table)
        assert found.chosen in found.sources
        assert all(table[rank].content == table[found.chosen].content for rank in found.sources)
        others = {rank for rank, r in enumerate(table) if r.content != table[found.chosen].content}
        assert set(found.receivers) == others and not others & set(found.sources)
        assert {*found.other_layout, *found.disagreed} <= others


def record_seeds() -> list[bytes]:
    own = Record(Strategy.POPULAR, True, False, b"l" * 16, b"r" * 32, 3, 4, 100)
    torn = Record(Strategy.RECEIVE_ONLY, False, True, b"l" * 16, b"x" * 32, 9, 4, 100, torn=True)
    only = Record(Strategy.SEND_ONLY, True, False, b"m" * 16, b"y" * 32, 3, 5, 100)
    rows = [record.pack() for record in (own, torn, only)]
    return [*rows, rows[0] + rows[1], rows[0] + rows[1] + rows[2], rows[0] * 3 + rows[1]]

"""States for tests: every width of element, odd shapes, and changes whose places are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from pccl.weights.layout import tensor_digest, tensors_of
from pccl.weights.update import Difference, Update, encode_anchor, encode_delta, parse

KINDS = "f8 f4 f2 i1 u1 i2 u2 i4 u4 i8 u8 c8 c16 ?".split()
State = dict[str, Any]


def zeros(state: State) -> State:
    """Tensors of the same layout, with other contents."""
    return {name: np.zeros_like(tensor) for name, tensor in state.items()}


def copies(state: State) -> State:
    return {name: tensor.copy() for name, tensor in state.items()}


def same_bits(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


def anchor_of(state: State, revision: int = 1) -> Update:
    tensors = tensors_of(state)
    data = encode_anchor(tensors, [tensor_digest(t.memory) for t in tensors], revision)
    return read(data)


def delta_between(old: State, new: State, revision: int = 2) -> Difference:
    before = tensors_of(old)
    digests = [tensor_digest(t.memory) for t in before]
    base = anchor_of(old).digest
    return encode_delta(tensors_of(new), [t.memory for t in before], digests, revision, base)


def read(data: bytes) -> Update:
    return parse(memoryview(data), state_bytes_max=1 << 30)

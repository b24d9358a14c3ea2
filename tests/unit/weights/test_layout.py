"""What a state's digest depends on: names, types, shapes and every bit, and nothing else."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import xxhash

import pccl
from pccl.transport.digests import xxh3, xxh3_blocks
from pccl.weights.applying import digest_of
from pccl.weights.layout import difference, tensor_digest, tensors_of


def digest(state: dict[str, Any]) -> bytes:
    return digest_of(tensors_of(state))


STATE: dict[str, Any] = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.zeros(2)}


def words(canonical: bytes) -> bytes:
    """XXH3-128 as the core writes it: low word first, little-endian."""
    high, low = struct.unpack(">QQ", canonical)
    return struct.pack("<QQ", low, high)


@pytest.mark.parametrize("size", [0, 1, 17, 240, 241, 5000, 300_000])
def test_hashes_of_memory_are_those_of_the_reference(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    assert xxh3(data.tobytes()) == words(xxhash.xxh3_128_digest(data.tobytes()))
    assert tensor_digest(data) == words(xxhash.xxh3_128_digest(data.tobytes()))
    blocks = [data[at : at + 1000].tobytes() for at in range(0, size, 1000)]
    together = xxh3_blocks(data.ctypes.data, size, 1000)
    assert together == b"".join(words(xxhash.xxh3_128_digest(block)) for block in blocks)


def test_a_block_of_no_bytes_is_refused() -> None:
    with pytest.raises(ValueError):
        xxh3_blocks(0, 0, 0)


def test_the_order_in_which_tensors_were_given_does_not_matter() -> None:
    assert digest(STATE) == digest(dict(reversed(STATE.items())))


@pytest.mark.parametrize(
    "other",
    [
        STATE | {"a": STATE["a"].reshape(3, 2)},
        STATE | {"a": STATE["a"].view(np.uint32)},
        STATE | {"b": np.array([0.0, -0.0])},
        {"a": STATE["a"], "c": STATE["b"]},
        {"a": STATE["a"]},
        STATE | {"c": np.zeros((0, 2))},
    ],
)
def test_name_type_shape_and_bits_all_matter(other: dict[str, Any]) -> None:
    assert digest(other) != digest(STATE)


def test_an_empty_state_has_a_digest_and_differs_from_others() -> None:
    assert len(digest({})) == 16 and digest({}) != digest(STATE)
    assert difference([], []) is None


@pytest.mark.parametrize(
    "state", [[1], {"": np.zeros(1)}, {3: np.zeros(1)}, {"x" * 5000: np.zeros(1)}]
)
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(pccl.UsageError):
        tensors_of(state)

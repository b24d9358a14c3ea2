"""The hash tree: whatever differs changes the root, and the pieces that differ are found."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import UsageError
from pccl.collectives.dtypes import Dtype
from pccl.state.layout import Entry, Layout
from pccl.state.tree import BLAKE3, XXH3, Hashing, differing, hashing_named, root_of
from pccl.transport.digests import xxh3, xxh3_blocks

BOTH = pytest.mark.parametrize("hashing", [XXH3, BLAKE3], ids=lambda h: h.name)


def digests(hashing: Hashing, *arrays: np.ndarray) -> bytes:
    return b"".join(hashing.blocks(a.ctypes.data, a.nbytes, 1 << 20) for a in arrays if a.nbytes)


@given(st.binary(max_size=5000), st.integers(1, 999))
def test_blocks_have_the_digests_of_the_xxhash_package(data: bytes, block: int) -> None:
    memory = np.frombuffer(data or b"x", np.uint8)
    expected = b"".join(
        xxhash.xxh3_128_digest(memory[i : i + block].tobytes())[::-1]
        for i in range(0, len(memory), block)
    )
    assert xxh3_blocks(memory.ctypes.data, len(memory), block) == expected
    assert xxh3(data) == xxhash.xxh3_128_digest(data)[::-1]


def test_blake3_is_that_of_its_test_vectors() -> None:
    # The first two of the vectors that its authors publish.
    assert BLAKE3.value(b"").hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    assert BLAKE3.value(bytes([0])).hex().startswith("2d3adedff11b61f14c886e35afa03673")


@BOTH
def test_a_changed_bit_changes_the_root_and_names_its_piece(hashing: Hashing) -> None:
    a, b = np.arange(700_000, dtype=np.float32), np.arange(5, dtype=np.int64)
    layout = Layout.of([Entry("a", Dtype.F32, a.shape), Entry("b", Dtype.I64, b.shape)])
    before = digests(hashing, a, b)
    a[400_000] += 1
    after = digests(hashing, a, b)
    assert differing(before, after, hashing) == [400_000 * 4 >> 20]
    assert root_of(layout, before, hashing) != root_of(layout, after, hashing)


@BOTH
def test_name_type_and_shape_are_part_of_the_root(hashing: Hashing) -> None:
    content = digests(hashing, np.zeros(6, np.float32))
    entries = [
        Entry("a", Dtype.F32, (6,)),
        Entry("b", Dtype.F32, (6,)),
        Entry("a", Dtype.I32, (6,)),
        Entry("a", Dtype.F32, (2, 3)),
    ]
    roots = {root_of(Layout.of([entry]), content, hashing) for entry in entries}
    assert len(roots) == 4


@BOTH
@given(count=st.integers(0, 40), data=st.data())
def test_every_leaf_counts_in_a_tree_of_any_size(
    hashing: Hashing, count: int, data: st.DataObject
) -> None:
    layout = Layout.of([Entry(f"{i:02}", Dtype.U8, (1,)) for i in range(count)])
    size = hashing.digest_bytes
    leaves = [hashing.value(bytes([i])) for i in range(count)]
    root = root_of(layout, b"".join(leaves), hashing)
    assert len(root) == size
    if count:
        changed = data.draw(st.integers(0, count - 1))
        leaves[changed] = hashing.value(b"other")
        assert root_of(layout, b"".join(leaves), hashing) != root
        assert root_of(layout, b"".join(leaves[::-1]), hashing) != root


def test_an_unknown_hash_is_refused() -> None:
    with pytest.raises(UsageError, match="md5"):
        hashing_named("md5")

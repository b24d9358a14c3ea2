"""Layouts: one canonical form, and the first difference in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import RemoteError, UsageError
from pccl.collectives.dtypes import Dtype
from pccl.state.layout import LEAF_BYTES, Entry, Layout

ENTRIES = st.builds(
    Entry,
    st.text(min_size=1, max_size=12),
    st.sampled_from(list(Dtype)),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
)
LAYOUTS = st.lists(ENTRIES, max_size=8, unique_by=lambda entry: entry.name).map(Layout.of)


@given(LAYOUTS)
def test_what_was_encoded_is_decoded_to_the_same(layout: Layout) -> None:
    assert Layout.decode(layout.encoded) == layout


@given(st.lists(ENTRIES, max_size=8, unique_by=lambda entry: entry.name), st.randoms())
def test_the_order_in_which_tensors_are_named_does_not_matter(
    entries: list[Entry], random: object
) -> None:
    mixed = list(entries)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert Layout.of(mixed).digest == Layout.of(entries).digest


@given(LAYOUTS, LAYOUTS)
def test_layouts_differ_exactly_if_there_is_a_first_difference(a: Layout, b: Layout) -> None:
    assert (a.first_difference(b) is None) == (a == b) == (a.digest == b.digest)


def test_the_first_difference_names_the_tensor_and_both_shapes() -> None:
    a = Entry("a", Dtype.F32, (2, 3))
    b = Entry("b", Dtype.F32, (4,))
    both = Layout.of([a, b])
    assert both.first_difference(Layout.of([b])) == "'a', f32[2, 3] is only here"
    assert Layout.of([b]).first_difference(both) == "'a', f32[2, 3] is missing here"
    other = Layout.of([a, Entry("b", Dtype.BF16, (4, 1))])
    assert both.first_difference(other) == "'b', f32[4] here is bf16[4, 1] there"


@given(LAYOUTS)
def test_leaves_cover_every_byte_once_and_none_is_larger_than_allowed(layout: Layout) -> None:
    seen = {index: 0 for index in range(len(layout.entries))}
    for leaf in layout.leaves:
        assert leaf.offset == seen[leaf.entry] and 0 < leaf.byte_count <= LEAF_BYTES
        seen[leaf.entry] += leaf.byte_count
    assert list(seen.values()) == [entry.byte_count for entry in layout.entries]
    assert layout.leaf_count == len(layout.leaves)


def test_a_large_tensor_is_cut_into_pieces_of_a_mebibyte() -> None:
    layout = Layout.of([Entry("w", Dtype.F32, (600_000,))])
    assert [leaf.byte_count for leaf in layout.leaves] == [LEAF_BYTES, LEAF_BYTES, 302_848]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[1]",
        b'[["a","f32",[-1]]]',
        b'[["a","f33",[1]]]',
        b'[["a","f32",[1]],["a","f32",[1]]]',
        b'[["b","f32",[1]],["a","f32",[1]]]',
        b'[["a", "f32", [1]]]',
        b'[["a","f32",[true]]]',
        b'[["a","f64",[1000000000000,1000000]]]',
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_canonical_layout_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        Layout.decode(data)


def test_two_tensors_of_one_name_are_refused() -> None:
    entry = Entry("a", Dtype.F32, (1,))
    with pytest.raises(UsageError, match="'a'"):
        Layout.of([entry, Entry("a", Dtype.F64, (1,))])

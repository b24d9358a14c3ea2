"""Manifests and the choice among several disks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import RemoteError
from pccl.collectives.dtypes import Dtype
from pccl.state.layout import Entry, Layout
from pccl.state.manifest import (
    Manifest,
    Offer,
    Revision,
    choose,
    decode_offers,
    encode_offers,
)
from pccl.state.tree import XXH3, root_of

LAYOUT = Layout.of([Entry("a", Dtype.F32, (3,)), Entry("b", Dtype.I8, (2, 2))])
DIGESTS = bytes(range(32))
MANIFEST = Manifest(
    7, 9, XXH3, root_of(LAYOUT, DIGESTS, XXH3), LAYOUT, DIGESTS, ("a", "b"), "2026-01-01"
)
NEW, OLD = Revision(8, 1, b"n"), Revision(5, 1, b"o")


def test_a_manifest_survives_its_way_and_a_changed_digest_does_not() -> None:
    assert Manifest.decode(MANIFEST.encode()) == MANIFEST
    for old, new in ((b"000102", b"000103"), (b'"format": 1', b'"format": 2'), (b"f32", b"f64")):
        assert old in MANIFEST.encode()
        with pytest.raises(RemoteError):
            Manifest.decode(MANIFEST.encode().replace(old, new, 1))


@given(st.binary(max_size=300))
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(RemoteError):
        Manifest.decode(data)


def test_the_newest_revision_that_all_disks_hold_together_is_chosen() -> None:
    table = [
        [Offer(NEW, 0b011), Offer(OLD, 0b111)],
        [Offer(NEW, 0b100)],
        [],
    ]
    found = choose(table, 3)
    assert found is not None
    assert found.what == NEW and found.owners == (0, 0, 1) and found.newer == ()


def test_what_is_not_whole_is_lost_and_said_to_be() -> None:
    table = [[Offer(NEW, 0b011), Offer(OLD, 0b110)], [Offer(OLD, 0b001)]]
    found = choose(table, 3)
    assert found is not None
    assert found.what == OLD and found.owners == (1, 0, 0) and found.newer == (NEW,)
    assert choose([[Offer(NEW, 0b011)]], 3) is None


def test_the_same_revision_of_two_histories_is_not_mixed() -> None:
    other = Revision(8, 2, b"m")
    assert choose([[Offer(NEW, 0b01)], [Offer(other, 0b10)]], 2) is None


@given(
    st.lists(
        st.builds(
            Offer,
            st.builds(Revision, st.integers(0, 9), st.integers(0, 1), st.binary(max_size=4)),
            st.integers(0, 1 << 70),
        ),
        max_size=9,
    )
)
def test_offers_survive_their_way(offers: list[Offer]) -> None:
    assert decode_offers(encode_offers(offers)) == offers


def test_of_two_contents_of_one_revision_that_of_most_disks_counts_and_the_odd_one_is_named() -> (
    None
):
    sane, odd = Revision(8, 1, b"a"), Revision(8, 1, b"z")  # its root would come first by itself
    whole = [[Offer(sane, 0b11)], [Offer(odd, 0b11)], [Offer(sane, 0b11)]]
    found = choose(whole, 2)
    assert found is not None
    assert (found.what, found.owners, found.newer, found.odd) == (sane, (0, 0), (), (1,))
    tied = choose(whole[:2], 2)
    assert tied is not None and tied.what == odd, "as many of each: the same one everywhere"

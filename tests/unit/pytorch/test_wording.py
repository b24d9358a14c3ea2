"""How texts of the library read in a group of torch."""

from __future__ import annotations

import pytest

from pccl.pytorch.wording import CALL_ALIKE, gone, in_torchs_terms, name_ranks

A, B = bytes.fromhex("0a1b2c3d" + "00" * 12), bytes.fromhex("ffeeddcc" + "00" * 12)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("tag 0: peer ffeeddcc posted x, peer 0a1b2c3d posted y", "rank 1 posted x, rank 0 posted"),
        ("not done after 1 s on peer ffeeddcc", "not done after 1 s on rank 1"),
        ("peer 0a1b2c3d.2 is silent", "rank 0 is silent"),
        ("and peer ffeeddcc, 0a1b2c3d is gone", "and rank 1, 0 is gone"),
        ("broadcast(f32[4], root ffeeddcc)", "broadcast(f32[4], root 1)"),
        ("peer 12345678 came", "peer 12345678 came"),
        ("peer 0a1b2c3d5 is longer", "peer 0a1b2c3d5 is longer"),
    ],
)
def test_members_are_named_by_rank(said: str, read: str) -> None:
    assert read in name_ranks(said, [A, B])


def test_a_name_that_fits_two_members_is_kept() -> None:
    twin = A[:4] + b"x" * 12
    assert name_ranks("peer 0a1b2c3d", [A, twin]) == "peer 0a1b2c3d"


def test_advice_for_steps_gives_way_to_advice_for_groups() -> None:
    text = "1 member is left, and min_world is 2; steps run again when enough have come in"
    assert in_torchs_terms(text, []) == "1 member is left, and min_world is 2"
    text = "step 37: tag 0: they differ; make shape, dtype, op, tag and options agree on all peers"
    assert in_torchs_terms(text, []) == f"tag 0: they differ; {CALL_ALIKE}"


def test_those_that_are_gone_are_counted_where_they_are_many() -> None:
    assert gone([2], 4) == "rank 2 of 4 is gone"
    assert gone([0, 2], 4) == "rank 0, rank 2 of 4 are gone"
    assert gone(range(11), 12).endswith("rank 7 and 3 more of 12 are gone")

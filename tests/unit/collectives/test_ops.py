"""Operation names, weights and descriptors."""

from __future__ import annotations

from typing import Any

import pytest

from pccl.base.errors import UsageError
from pccl.collectives.descriptor import Descriptor
from pccl.collectives.dtypes import Dtype
from pccl.collectives.ops import (
    Algorithm,
    ReduceOp,
    check_meaning,
    check_weight,
    parse_algorithm,
    parse_op,
)


def test_every_operation_has_its_wire_number() -> None:
    assert [int(parse_op(name)) for name in ("sum", "avg", "prod", "min", "max")] == [0, 1, 2, 3, 4]
    assert parse_op(ReduceOp.MIN) is ReduceOp.MIN
    assert [int(parse_algorithm(n)) for n in ("auto", "exchange", "direct", "ring")] == [0, 1, 2, 3]


@pytest.mark.parametrize("op", ["SUM", "", 0, None])
def test_an_unknown_operation_is_answered_with_the_known_ones(op: Any) -> None:
    with pytest.raises(UsageError, match=r"sum, avg, prod, min, max \(mean for avg,"):
        parse_op(op)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0, "heavy", None])
def test_a_weight_is_a_finite_number_that_is_not_negative(weight: Any) -> None:
    with pytest.raises(UsageError, match="weight"):
        check_weight(weight, ReduceOp.AVG)


def test_only_averages_have_weights() -> None:
    assert check_weight(3, ReduceOp.AVG) == 3.0
    with pytest.raises(UsageError, match="avg"):
        check_weight(3, ReduceOp.SUM)


def test_bool_has_no_average() -> None:
    check_meaning(Dtype.BOOL, ReduceOp.SUM)
    with pytest.raises(UsageError, match="bool"):
        check_meaning(Dtype.BOOL, ReduceOp.AVG)


@pytest.mark.parametrize("dtype", [Dtype.C64, Dtype.F8_E5M2])
def test_what_is_only_moved_has_no_reductions(dtype: Dtype) -> None:
    with pytest.raises(UsageError, match=f"{dtype.label} has no reductions"):
        check_meaning(dtype, ReduceOp.MAX)


def test_a_descriptor_reads_like_the_call_it_describes() -> None:
    plain = Descriptor(Dtype.F32, 1 << 20, ReduceOp.SUM)
    special = Descriptor(Dtype.BF16, 3, ReduceOp.AVG, True, Algorithm.RING)
    assert str(plain) == "all_reduce(sum, f32[1048576])"
    assert str(special) == "all_reduce(avg, bf16[3], deterministic, ring)"

"""Which tensors share memory, against a list of every element's address."""

from __future__ import annotations

import itertools
import random

import torch

from pccl.pytorch.overlap import any_overlap, extent, is_apart, overlap


def cells(tensor: torch.Tensor) -> list[int]:
    first, size = tensor.data_ptr(), tensor.element_size()
    return [
        first + size * sum(i * s for i, s in zip(at, tensor.stride(), strict=True))
        for at in itertools.product(*map(range, tensor.shape))
    ]


def drawn(dice: random.Random, base: torch.Tensor, stride: list[int]) -> torch.Tensor:
    shape = [dice.randint(0 if dice.random() < 0.1 else 1, 4) for _ in stride]
    return base.as_strided(shape, stride, dice.randint(0, 40))


def test_what_shares_memory_is_always_found_and_views_of_one_form_are_told_apart() -> None:
    dice = random.Random(4)
    base = torch.zeros(4000)
    told_apart = 0
    for _ in range(3000):
        stride = [dice.randint(0, 12) for _ in range(dice.randint(1, 3))]
        other = stride if dice.random() < 0.7 else [dice.randint(0, 12) for _ in stride]
        one, two = drawn(dice, base, stride), drawn(dice, base, other)
        mine, theirs = cells(one), cells(two)
        assert extent(one) == ((min(mine), max(mine) + 4) if mine else (0, 0))
        assert overlap(one, two) >= bool({*mine} & {*theirs}), (one.stride(), two.stride())
        assert any_overlap([one, two]) == overlap(one, two)
        assert not is_apart(one) or len({*mine}) == len(mine)
        told_apart += not overlap(one, two)
    assert told_apart > 500


def test_columns_rows_and_blocks_are_apart() -> None:
    matrix = torch.zeros(8, 6)
    assert not any_overlap([matrix[:, at] for at in range(6)])
    assert not any_overlap([*matrix])
    assert not any_overlap([matrix[:4, :3], matrix[:4, 3:], matrix[4:, :3], matrix[4:, 3:]])
    assert any_overlap([matrix[:, 1], matrix[:, 1:3]])
    assert is_apart(matrix.t()) and is_apart(matrix[::2, ::3])
    assert not is_apart(torch.zeros(1).expand(3))
    assert not is_apart(torch.zeros(8).as_strided((2, 4), (2, 1)))

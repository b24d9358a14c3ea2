"""What counts as a whole number, wherever one is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pccl.arguments import check_number
from pccl.base.errors import UsageError
from pccl.base.numbers import whole_number
from pccl.collectives.placed import check_counts, check_root


class Odd:
    def __index__(self) -> int:
        raise RuntimeError("no number today")


NUMBERS = [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3), torch.tensor([3])]
OTHERS = [True, 3.0, "3", None, np.array([3, 4]), np.float32(3), np.bool_(True), Odd()]


@pytest.mark.parametrize("value", NUMBERS)
def test_integers_of_any_kind_are_whole_numbers(value: Any) -> None:
    number = whole_number(value)
    assert type(number) is int and number == 3
    assert check_number("tag", value, 0) == 3 and check_root(value) == 3


@pytest.mark.parametrize("value", [*OTHERS, torch.tensor([3, 4])])
def test_nothing_else_is_and_is_refused_as_such(value: Any) -> None:
    assert whole_number(value) is None
    with pytest.raises(UsageError, match="tag must be an integer, not"):
        check_number("tag", value, 0)
    with pytest.raises(UsageError, match="root must be a rank"):
        check_root(value)


def test_rows_are_whole_numbers_too() -> None:
    assert check_counts(np.array([1, 0]), "counts") == (1, 0)
    with pytest.raises(UsageError, match="whole numbers"):
        check_counts([Odd(), 1], "counts")

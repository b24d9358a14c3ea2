"""A model as flat vectors."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from pccl.base.errors import UsageError
from pccl.diloco.parameters import FlatParameters


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))


def test_what_is_written_is_read_section_by_section() -> None:
    made = dict(model().named_parameters())
    flat = FlatParameters(made, [["1.weight"], ["0.bias", "0.weight"]])
    assert flat.sizes == [8, 16] and flat.size == 24
    flat.write(1, torch.arange(16.0))
    assert made["0.bias"].tolist() == [0, 1, 2, 3]
    assert made["0.weight"][0].tolist() == [4, 5, 6]
    assert flat.read(1).tolist() == list(range(16))
    assert torch.equal(flat.read(0), made["1.weight"].detach().reshape(-1))


def test_what_a_model_of_low_precision_cannot_hold_is_not_taken_for_learning() -> None:
    made = model().to(torch.bfloat16)
    flat = FlatParameters(made)
    theta = torch.linspace(0.1, 0.9, 24)
    flat.write(0, theta)
    assert not torch.equal(flat.read(0), theta)
    assert torch.equal(flat.read(0), flat.rounded(0, theta))


def test_frozen_parameters_are_left_alone() -> None:
    made = model()
    made[0].weight.requires_grad_(False)
    assert [place.name for place in FlatParameters(made).places[0]] == ["0.bias", "1.weight"]


def test_a_parameter_that_is_not_contiguous_is_read_and_written() -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3).T)
    flat = FlatParameters({"p": parameter})
    assert flat.read(0).tolist() == [0, 3, 1, 4, 2, 5]
    flat.write(0, torch.arange(6.0))
    assert parameter.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="no parameter"):
        FlatParameters([])
    with pytest.raises(UsageError, match="not real numbers"):
        FlatParameters({"n": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(UsageError, match="every parameter once"):
        FlatParameters(model(), [["0.weight"]])
    with pytest.raises(UsageError, match="same name"):
        FlatParameters([("a", torch.zeros(1)), ("a", torch.zeros(1))])

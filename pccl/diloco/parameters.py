"""A model's parameters as flat f32 vectors in the host's memory, section by section.

Outer steps are arithmetic on flat vectors; the model keeps its own tensors, of whatever type and
wherever they are.  A model that FSDP2 shards shows the shards that this process holds.

Invariant: `read` after `write(v)` returns `rounded(v)`, bit for bit: what a model of lower
precision cannot hold is never taken for something it has learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pccl.base.errors import UsageError

Model = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one parameter lies in its section."""

    name: str
    begin: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        size = 1
        for side in self.shape:
            size *= side
        return self.begin + size


class FlatParameters:
    """The trainable parameters of a model, in sections that are read and written by number."""

    def __init__(self, model: Model, sections: Sequence[Sequence[str]] | None = None) -> None:
        """Takes the parameters' names section by section; None makes one section of all.

        Raises:
            UsageError: there are none, one is not floating point, or sections do not cover them.
        """
        found = dict(named_parameters(model))
        if not found:
            raise UsageError("the model has no parameter that requires a gradient")
        for name, tensor in found.items():
            if not tensor.is_floating_point():
                raise UsageError(f"parameter {name!r} is {tensor.dtype}, which is not real numbers")
        named = [list(found)] if sections is None else [list(names) for names in sections]
        if sorted(name for names in named for name in names) != sorted(found):
            raise UsageError("the fragments must hold every parameter once, and nothing else")
        self._tensors = [[found[name] for name in names] for names in named]
        self.places: list[list[Place]] = []
        for names in named:
            begin, places = 0, []
            for name in names:
                place = Place(name, begin, tuple(_local(found[name]).shape))
                begin = place.end
                places.append(place)
            self.places.append(places)
        self.sizes = [places[-1].end for places in self.places]

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def size(self) -> int:
        """Elements of all sections together, as this process holds them."""
        return sum(self.sizes)

    def read(self, section: int) -> Tensor:
        """Returns a copy of one section, f32 of shape [size]."""
        flat = torch.empty(self.sizes[section], dtype=torch.float32, device="cpu")
        for place, tensor in zip(self.places[section], self._tensors[section], strict=True):
            flat[place.begin : place.end].view(place.shape).copy_(_local(tensor))
        return flat

    def write(self, section: int, flat: Tensor) -> None:
        """Copies a flat section into the model's tensors, rounding to their types."""
        for place, tensor in zip(self.places[section], self._tensors[section], strict=True):
            _local(tensor).copy_(flat[place.begin : place.end].view(place.shape))

    def rounded(self, section: int, flat: Tensor) -> Tensor:
        """Returns what the model holds after `write(section, flat)`; `flat` itself if all."""
        if all(tensor.dtype == torch.float32 for tensor in self._tensors[section]):
            return flat
        held = flat.clone()
        for place, tensor in zip(self.places[section], self._tensors[section], strict=True):
            part = held[place.begin : place.end]
            part.copy_(part.to(tensor.dtype))
        return held


def named_parameters(model: Model) -> list[tuple[str, Tensor]]:
    """Returns what is trained: the model's parameters that require a gradient."""
    if isinstance(model, nn.Module):
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    pairs = list(model.items()) if isinstance(model, Mapping) else list(model)
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise UsageError("two parameters have the same name")
    return pairs


def local_sizes(model: Model) -> list[tuple[str, int]]:
    """Returns names and element counts, as this process holds them."""
    return [(name, _local(tensor).numel()) for name, tensor in named_parameters(model)]


def _local(tensor: Tensor) -> Tensor:
    """Returns the memory of a parameter itself, of a sharded one this process's shard."""
    plain: Any = tensor.detach()
    local: Tensor = plain.to_local() if hasattr(plain, "to_local") else plain
    return local

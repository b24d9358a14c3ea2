"""Which parameters form a fragment, and when each fragment is reduced.  Pure.

Invariant: every parameter is in exactly one fragment, and fragments and schedule depend on nothing
but names, sizes and settings, so that all peers come to the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pccl.base.errors import UsageError


def layer_of(name: str) -> str | None:
    """Returns the layer that a parameter belongs to: `blocks.3.norm.bias` is of `blocks.3`.

    None for parameters outside of any list of layers, embeddings and heads for the most part.
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return None


def strided_fragments(sizes: Sequence[tuple[str, int]], fragments: int) -> list[list[str]]:
    """Splits parameters into fragments: layer l goes to fragment l mod F.

    What belongs to no layer goes, by parent module and in order, to the fragment that is smallest.

    Args:
        sizes: name and element count of each parameter, in the model's order.
        fragments: F, at least 1.

    Raises:
        UsageError: there are fewer layers and other modules than fragments.
    """
    if fragments < 1:
        raise UsageError(f"fragments must be at least 1, not {fragments}")
    layers: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    size_of = dict(sizes)
    for name, _ in sizes:
        layer = layer_of(name)
        if layer is None:
            others.setdefault(name.rpartition(".")[0], []).append(name)
        else:
            layers.setdefault(layer, []).append(name)
    found: list[list[str]] = [[] for _ in range(fragments)]
    filled = [0] * fragments
    for number, names in enumerate(layers.values()):
        found[number % fragments] += names
        filled[number % fragments] += sum(size_of[name] for name in names)
    for names in others.values():
        smallest = min(range(fragments), key=lambda f: (filled[f], f))
        found[smallest] += names
        filled[smallest] += sum(size_of[name] for name in names)
    if any(not names for names in found):
        raise UsageError(
            f"{fragments} fragments need at least as many layers; there are {len(layers)} layers "
            f"and {len(others)} other modules"
        )
    return found


@dataclass(frozen=True, slots=True)
class Schedule:
    """When fragments are reduced: p starts at inner steps t ≡ p H/F (mod H), from t = H/F on.

    Attributes:
        inner_steps: H, a multiple of F.
        fragments: F.
        overlap: τ, inner steps from a fragment's start to its use, 0 ≤ τ < H/F: so one fragment is
            in flight at most, and none at the start of another.

    Source: Streaming DiLoCo, Douillard et al. 2025, arXiv:2501.18512, sections 2.1 and 2.2.
    """

    inner_steps: int
    fragments: int
    overlap: int

    def __post_init__(self) -> None:
        if self.inner_steps < 1 or self.fragments < 1:
            raise UsageError("inner_steps and fragments must be at least 1")
        if self.inner_steps % self.fragments:
            raise UsageError(
                f"inner_steps ({self.inner_steps}) must be a multiple of the number of fragments "
                f"({self.fragments})"
            )
        if not 0 <= self.overlap < self.distance:
            raise UsageError(
                f"overlap ({self.overlap}) must be at least 0 and below inner_steps / fragments "
                f"({self.distance}), so that one fragment at most is in flight"
            )

    @property
    def distance(self) -> int:
        """Inner steps from one fragment's start to the next one's."""
        return self.inner_steps // self.fragments

    def starts_at(self, inner_step: int) -> int | None:
        """Returns the fragment that starts after so many inner steps, if one does."""
        if inner_step == 0 or inner_step % self.distance:
            return None
        return inner_step // self.distance % self.fragments

"""What the peers of a low-communication churn run train: integers that anybody can compute again.

The model has four layers of 64 numbers.  What a peer learns in an inner step is UNIT times a small
integer: the sign of each of its parameters, which pulls them towards zero and keeps all numbers
small, and a draw that only this peer makes in this inner step.  So whoever knows which inner steps
a contribution is made of can compute it, bit by bit.

Pure, numpy only; the numbers of each method are those that the agents give to the library.
Invariant: UNIT is divided by 1 to 12, so that the mean of up to twelve equally weighted
contributions of whole multiples of it is whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

UNIT = 27720
LAYERS = 4
WIDTH = 64
SIZE = LAYERS * WIDTH
NAMES = tuple(f"layers.{number}.weight" for number in range(LAYERS))
SHIFTS = 1 << 16
SEED = 5
WHOLE_MAX = 1 << 24  # f32 holds all integers below

# As the library names its steps.
REDUCTION = "pccl.diloco"  # and what follows
SYNC = "pccl.sync"  # the entry, and what follows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The numbers of one low-communication method.

    Attributes:
        inner_steps: H; of the whole model, in streaming too.
        sections: layers of each fragment.
        top_k: entries that are sent of each layer; 0 sends everything.
    """

    inner_steps: int
    rate: float
    momentum: float
    sections: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3),)
    overlap: int = 0
    alpha: float = 0.0
    top_k: int = 0
    delayed: bool = False


METHODS = {
    "diloco": Method(inner_steps=3, rate=0.7, momentum=0.9),
    "async-diloco": Method(inner_steps=3, rate=0.7, momentum=0.9, delayed=True),
    "streaming": Method(
        inner_steps=6, rate=0.4, momentum=0.9, sections=((0, 2), (1, 3)), overlap=1, alpha=0.5
    ),
    "sparse-loco": Method(inner_steps=3, rate=1.0, momentum=0.0, top_k=8),
}


def is_reduction(step_name: str) -> bool:
    return step_name.startswith(REDUCTION) and not step_name.endswith(".verify")


def is_sync(step_name: str) -> bool:
    return step_name.startswith(SYNC)


def section_of(method: Method, step_name: str) -> int:
    """Returns which section a reduction is about."""
    return int(step_name.rpartition(".")[2]) if len(method.sections) > 1 else 0


def tokens_of(method: Method, peer: bytes) -> int:
    """What a peer says that it has seen in each inner step."""
    return 1 if method.top_k else 1 + peer[-1] % 3


def first_parameters() -> Any:
    """Returns what every model begins with: f32 [LAYERS, WIDTH]."""
    return np.float32(UNIT) * _table()[:SIZE].reshape(LAYERS, WIDTH)


def lesson(peer: bytes, number: int, held: Any) -> Any:
    """Returns what `peer` subtracts in its inner step `number` from one layer or all.

    Args:
        held: its parameters, f32 [LAYERS, WIDTH].
    """
    mixed = hashlib.blake2b(peer + number.to_bytes(8, "little"), digest_size=2).digest()
    offset = int.from_bytes(mixed, "little")
    drawn = _table()[offset : offset + SIZE].reshape(LAYERS, WIDTH)
    return np.float32(UNIT) * (drawn + np.sign(held))


def digest(arrays: Iterable[Any]) -> str:
    """Returns a hash of arrays' bytes."""
    hasher = hashlib.blake2b(digest_size=8)
    for array in arrays:
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


@cache
def _table() -> Any:
    return np.random.default_rng(SEED).integers(-1, 2, SIZE + SHIFTS).astype(np.float32)

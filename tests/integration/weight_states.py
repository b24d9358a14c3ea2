"""States that are known by a number: the same on whoever makes them, and 1 % apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ELEMENTS = 6_000_000
CHANGED = ELEMENTS // 100
State = dict[str, Any]


def make_state(number: int) -> State:
    """12 MB of 16-bit elements, of which 1 % are others than in the state before."""
    table = np.random.default_rng(0).integers(0, 1 << 16, ELEMENTS).astype(np.uint16)
    for at in range(1, number + 1):
        dice = np.random.default_rng(at)
        table[dice.integers(0, ELEMENTS, CHANGED)] = dice.integers(0, 1 << 16, CHANGED)
    return {
        "table": table,
        "step": np.array(number, np.int64),
        "none": np.zeros((0, 2), np.float32),
    }


def empty_state() -> State:
    return {name: np.zeros_like(tensor) for name, tensor in make_state(0).items()}


def sha_of(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(np.ascontiguousarray(state[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

"""Reduce operations and plan choices: names for people, numbers for the wire."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final, TypeVar

from pccl.base.errors import UsageError
from pccl.collectives.dtypes import Dtype


class ReduceOp(IntEnum):
    """How contributions become one result."""

    SUM = 0
    AVG = 1  # weighted: sum of weight * value / sum of weights
    PROD = 2
    MIN = 3
    MAX = 4

    __hash__ = int.__hash__  # as Dtype's

    @property
    def label(self) -> str:
        return self.name.lower()


class Algorithm(IntEnum):
    """Which plan moves the data; AUTOMATIC chooses by size and number of peers."""

    AUTOMATIC = 0
    EXCHANGE = 1
    DIRECT = 2
    RING = 3

    __hash__ = int.__hash__  # as Dtype's


_OPS: Final = {op.label: op for op in ReduceOp} | {"mean": ReduceOp.AVG, "product": ReduceOp.PROD}
_ALGORITHMS: Final = {
    "auto": Algorithm.AUTOMATIC,
    "exchange": Algorithm.EXCHANGE,
    "direct": Algorithm.DIRECT,
    "ring": Algorithm.RING,
}
COMPLEX_PARTS: Final = {Dtype.C64: Dtype.F32, Dtype.C128: Dtype.F64}
"""What a complex number is two of, so that sums and averages are sums and averages of these."""
_E = TypeVar("_E", ReduceOp, Algorithm)


def parse_op(op: str | ReduceOp) -> ReduceOp:
    """Returns the operation of that name.  Raises UsageError with the names there are."""
    return _parse(op, _OPS, ReduceOp, "op")


def parse_algorithm(algorithm: str | Algorithm) -> Algorithm:
    """Returns the plan choice of that name.  Raises UsageError with the names there are."""
    return _parse(algorithm, _ALGORITHMS, Algorithm, "algorithm")


def check_weight(weight: float, op: ReduceOp) -> float:
    """Returns the weight as a float.

    Raises:
        UsageError: not a finite number >= 0, or given to an operation that has no weights.
    """
    if type(weight) is float and weight == 1.0:
        return weight  # as nearly always
    try:
        value = float(weight)
    except (TypeError, ValueError):
        raise UsageError(f"weight must be a number, not {weight!r}") from None
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"weight must be finite and not negative, not {weight!r}")
    if value != 1.0 and op is not ReduceOp.AVG:
        raise UsageError(f"op {op.label!r} has no weights; weight={weight!r} needs op='avg'")
    return value


def check_meaning(dtype: Dtype, op: ReduceOp) -> None:
    """Raises UsageError for combinations without meaning."""
    if not dtype.has_arithmetic:
        raise UsageError(
            f"{dtype.label} has no reductions here, its elements are only moved; "
            + ("op='sum' and op='avg' work" if dtype in COMPLEX_PARTS else "convert it to f32")
        )
    if dtype is Dtype.BOOL and op is ReduceOp.AVG:
        raise UsageError("bool has no average; use op='sum' for 'any', op='prod' for 'all'")


def _parse(value: object, names: dict[str, _E], enum: type[_E], what: str) -> _E:
    if isinstance(value, enum):
        return value
    found = names.get(value) if isinstance(value, str) else None
    if found is None:
        raise UsageError(f"{what} must be one of {_listed(names)}, not {value!r}")
    return found


def _listed(names: dict[str, _E]) -> str:
    """Returns the names there are; other names for the same in brackets."""
    first = {meant: name for name, meant in reversed(names.items())}
    others = [f"{name} for {first[meant]}" for name, meant in names.items() if name != first[meant]]
    return ", ".join(first[m] for m in dict.fromkeys(names.values())) + (
        f" ({', '.join(others)})" if others else ""
    )

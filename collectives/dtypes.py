"""Element types: their numbers on the wire, and how numpy, torch and ml_dtypes name them.

Neither numpy nor torch is imported here: an array of theirs can only exist once its library is
loaded.  Invariant: a number never changes its meaning (native/include/pccl/dtype.hpp has the same).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final


class Dtype(IntEnum):
    """Element types that operations know."""

    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    I8 = 4
    U8 = 5
    I16 = 6
    U16 = 7
    I32 = 8
    U32 = 9
    I64 = 10
    U64 = 11
    BOOL = 12
    # Elements that are only moved: no reduction knows them.
    C64 = 13
    C128 = 14
    F8_E4M3FN = 15
    F8_E5M2 = 16
    F8_E4M3FNUZ = 17
    F8_E5M2FNUZ = 18
    F8_E8M0FNU = 19

    __hash__ = int.__hash__  # Enum's own is a Python function, and tables are read per operation

    @property
    def label(self) -> str:
        """The short name people see, for example `f32`."""
        return self.name.lower()

    @property
    def has_arithmetic(self) -> bool:
        return self <= Dtype.BOOL


SUPPORTED: Final = (
    "f64 f32 f16 bf16, all integers of 8 to 64 bits, bool, complex64, complex128 and the 8-bit "
    "floats"
)

ITEM_BYTES: Final[dict[Dtype, int]] = {
    Dtype.F64: 8,
    Dtype.F32: 4,
    Dtype.F16: 2,
    Dtype.BF16: 2,
    Dtype.I8: 1,
    Dtype.U8: 1,
    Dtype.I16: 2,
    Dtype.U16: 2,
    Dtype.I32: 4,
    Dtype.U32: 4,
    Dtype.I64: 8,
    Dtype.U64: 8,
    Dtype.BOOL: 1,
    Dtype.C64: 8,
    Dtype.C128: 16,
    Dtype.F8_E4M3FN: 1,
    Dtype.F8_E5M2: 1,
    Dtype.F8_E4M3FNUZ: 1,
    Dtype.F8_E5M2FNUZ: 1,
    Dtype.F8_E8M0FNU: 1,
}

# By numpy's kind and item size, so that `long` and `long long` are one.
_BY_KIND: Final[dict[tuple[str, int], Dtype]] = {
    ("f", 8): Dtype.F64,
    ("f", 4): Dtype.F32,
    ("f", 2): Dtype.F16,
    ("i", 1): Dtype.I8,
    ("u", 1): Dtype.U8,
    ("i", 2): Dtype.I16,
    ("u", 2): Dtype.U16,
    ("i", 4): Dtype.I32,
    ("u", 4): Dtype.U32,
    ("i", 8): Dtype.I64,
    ("u", 8): Dtype.U64,
    ("b", 1): Dtype.BOOL,
    ("c", 8): Dtype.C64,
    ("c", 16): Dtype.C128,
}

# As torch and ml_dtypes call them, with their size.
_BY_NAME: Final[dict[tuple[str, int], Dtype]] = {
    ("bfloat16", 2): Dtype.BF16,
    ("float8_e4m3fn", 1): Dtype.F8_E4M3FN,
    ("float8_e5m2", 1): Dtype.F8_E5M2,
    ("float8_e4m3fnuz", 1): Dtype.F8_E4M3FNUZ,
    ("float8_e5m2fnuz", 1): Dtype.F8_E5M2FNUZ,
    ("float8_e8m0fnu", 1): Dtype.F8_E8M0FNU,
}

_TORCH_NAMES: Final[dict[str, Dtype]] = {
    "float64": Dtype.F64,
    "float32": Dtype.F32,
    "float16": Dtype.F16,
    "int8": Dtype.I8,
    "uint8": Dtype.U8,
    "int16": Dtype.I16,
    "uint16": Dtype.U16,
    "int32": Dtype.I32,
    "uint32": Dtype.U32,
    "int64": Dtype.I64,
    "uint64": Dtype.U64,
    "bool": Dtype.BOOL,
    "complex64": Dtype.C64,
    "complex128": Dtype.C128,
} | {name: dtype for (name, _), dtype in _BY_NAME.items()}


_numpy_cache: dict[Any, Dtype | None] = {}
_CACHE_MAX: Final = 256  # structured dtypes are endless; the supported ones are 20


def of_numpy(dtype: Any) -> Dtype | None:
    """Returns the Dtype of a numpy dtype (those of ml_dtypes included), None if unsupported.

    A dtype of the other byte order is unsupported.
    """
    try:
        return _numpy_cache[dtype]
    except KeyError:
        pass
    found: Dtype | None = None
    if dtype.isnative:
        found = _BY_NAME.get((dtype.name, dtype.itemsize)) or _BY_KIND.get(
            (dtype.kind, dtype.itemsize)
        )
    if len(_numpy_cache) < _CACHE_MAX:
        _numpy_cache[dtype] = found
    return found


_torch_cache: dict[Any, Dtype | None] = {}


def of_torch(dtype: Any) -> Dtype | None:
    """Returns the Dtype of a torch dtype, None if unsupported."""
    try:
        return _torch_cache[dtype]  # torch has a fixed number of them
    except KeyError:
        found = _TORCH_NAMES.get(str(dtype).removeprefix("torch."))
        _torch_cache[dtype] = found
        return found

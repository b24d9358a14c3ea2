"""Arrays as memory: what a caller hands in, checked before anything is sent.

Accepted are numpy arrays, torch CPU tensors, and whatever exposes its memory without a copy through
the buffer protocol, `__array_interface__` or DLPack.  torch is never imported: a tensor can only
exist once it is loaded.

Invariant: `describe` returns memory that is C-contiguous and of a supported dtype, or raises
UsageError and has changed nothing.  A Buffer keeps the memory's owner alive; as long as the engine
may touch the memory, somebody must hold the Buffer.
"""

from __future__ import annotations

import bisect
import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from pccl.base.errors import UsageError
from pccl.collectives.dtypes import ITEM_BYTES, SUPPORTED, Dtype, of_numpy, of_torch

DLPACK_CPU = 1


@dataclass(slots=True)
class Buffer:
    """Borrowed memory of one array.  Nobody changes one; frozen, it would take three times as long
    to make, and every operation makes one or two."""

    owner: Any
    address: int
    count: int
    dtype: Dtype
    shape: tuple[int, ...]
    writable: bool

    @property
    def byte_count(self) -> int:
        return self.count * ITEM_BYTES[self.dtype]

    @property
    def end(self) -> int:
        return self.address + self.byte_count

    def overlaps(self, other: Buffer) -> bool:
        both = self.count > 0 and other.count > 0
        return both and self.address < other.end and other.address < self.end


def describe(array: Any, *, name: str = "the array") -> Buffer:
    """Returns the memory of `array`; never copies it.

    Raises:
        UsageError: it is no array, not on the CPU, not contiguous, or of an unsupported dtype.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, getattr(numpy, "ndarray", ())):
        return _of_numpy(array, array, name)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, getattr(torch, "Tensor", ())):
        return _of_torch(torch, array, name)
    return _of_numpy(_as_numpy(array, name), array, name)


def describe_pair(array: Any, out: Any | None) -> tuple[Buffer, Buffer]:
    """Returns input and output memory of one operation; in place they are the same.

    Raises:
        UsageError: as `describe`; the output is read-only, differs in shape or dtype, or overlaps
            the input without being the same memory.
    """
    source = describe(array)
    if out is None or out is array:
        require_writable(source, "the array", "pass out=, or a writable copy")
        return source, source
    target = describe(out, name="out")
    require_writable(target, "out", "pass a writable array")
    if target.dtype is not source.dtype or target.shape != source.shape:
        raise UsageError(
            f"out is {_words(target)}, the array {_words(source)}; shape and dtype must be equal"
        )
    if target.overlaps(source) and target.address != source.address:
        raise UsageError("out overlaps the array partly; use the same memory or a separate one")
    return source, target


class SpanSet:
    """Memory that operations in flight read or write; finds conflicts in logarithmic time.

    Reads may share memory with reads; a write shares it with nothing.
    """

    def __init__(self) -> None:
        self._reads: list[tuple[int, int]] = []  # sorted, disjoint (touching reads are merged)
        self._writes: list[tuple[int, int]] = []  # sorted, disjoint

    def conflict(self, source: Buffer, target: Buffer) -> bool:
        """Says whether an operation on these buffers would race with one of the set."""
        return (
            _touches(self._writes, target)
            or _touches(self._reads, target)
            or (source is not target and _touches(self._writes, source))
        )

    def add(self, source: Buffer, target: Buffer) -> None:
        if target.count:
            bisect.insort(self._writes, (target.address, target.end))
        if source is not target and source.count:
            _merge(self._reads, source.address, source.end)


def _touches(spans: list[tuple[int, int]], buffer: Buffer) -> bool:
    if not buffer.count:
        return False
    at = bisect.bisect_left(spans, (buffer.end,))  # the first span that starts at or past the end
    return at > 0 and spans[at - 1][1] > buffer.address


def _merge(spans: list[tuple[int, int]], start: int, end: int) -> None:
    at = bisect.bisect_left(spans, (start,))
    if at > 0 and spans[at - 1][1] >= start:
        at -= 1
        start = spans[at][0]
    last = at
    while last < len(spans) and spans[last][0] <= end:
        end = max(end, spans[last][1])
        last += 1
    spans[at:last] = [(start, end)]


def _of_numpy(array: Any, owner: Any, name: str) -> Buffer:
    dtype = of_numpy(array.dtype)
    if dtype is None:
        raise UsageError(f"{name} has dtype {array.dtype}; supported are {SUPPORTED}")
    flags = array.flags
    if not flags.c_contiguous:
        raise _not_contiguous(name, "numpy.ascontiguousarray()")
    # `owner` as well: the view numpy made of a foreign object may be all that pins its memory.
    held = owner if owner is array else (owner, array)
    address = array.__array_interface__["data"][0]
    return Buffer(held, address, array.size, dtype, array.shape, flags.writeable)


def _of_torch(torch: Any, tensor: Any, name: str) -> Buffer:
    if not tensor.is_cpu:
        raise UsageError(f"{name} is on {tensor.device}; move it to the CPU first")
    if tensor.layout is not torch.strided:
        raise UsageError(f"{name} has layout {tensor.layout}; only dense tensors are supported")
    dtype = of_torch(tensor.dtype)
    if dtype is None:
        raise UsageError(f"{name} has dtype {tensor.dtype}; supported are {SUPPORTED}")
    if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
        raise _not_contiguous(name, ".contiguous()")
    count = tensor.numel()
    return Buffer(tensor, tensor.data_ptr(), count, dtype, tuple(tensor.shape), True)


def _as_numpy(array: Any, name: str) -> Any:
    """Views a foreign object's memory through numpy, without a copy."""
    import numpy  # only here: most programs bring numpy or torch arrays of their own

    if isinstance(array, str | list | tuple | dict | set | int | float | complex | bool | None):
        raise _unsupported(array, name)
    if isinstance(array, numpy.generic):
        raise UsageError(f"{name} is a numpy scalar, which cannot be changed; use a 0-d array")
    try:
        if _has_buffer(array):
            return numpy.asarray(memoryview(array))
        if isinstance(getattr(array, "__array_interface__", None), dict):
            return numpy.asarray(array)
        device = getattr(array, "__dlpack_device__", None)
        if device is not None:
            if int(device()[0]) != DLPACK_CPU:
                raise UsageError(f"{name} is not in CPU memory; move it to the CPU first")
            return numpy.from_dlpack(array)
    except (TypeError, ValueError, BufferError, NotImplementedError) as error:
        raise UsageError(f"the memory of {name} cannot be used without a copy: {error}") from error
    raise _unsupported(array, name)


def _has_buffer(array: Any) -> bool:
    if isinstance(array, ctypes.Array | ctypes.Structure):
        return True
    try:
        memoryview(array).release()
    except (TypeError, BufferError):
        return False
    return True


def _unsupported(array: Any, name: str) -> UsageError:
    kind = f"{type(array).__module__}.{type(array).__qualname__}".removeprefix("builtins.")
    return UsageError(
        f"{name} is a {kind}; pass a numpy array, a torch CPU tensor, or an object that shares "
        "its memory by the buffer protocol or DLPack"
    )


def _not_contiguous(name: str, remedy: str) -> UsageError:
    return UsageError(f"{name} is not contiguous (row-major); make a contiguous copy: {remedy}")


def require_writable(buffer: Buffer, name: str, remedy: str) -> None:
    """Raises UsageError if a result cannot be put there."""
    if not buffer.writable:
        raise UsageError(f"{name} is read-only and would receive the result; {remedy}")


def _words(buffer: Buffer) -> str:
    return f"{buffer.dtype.label}{list(buffer.shape)}"

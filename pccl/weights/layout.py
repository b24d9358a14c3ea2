"""A state as memory: named tensors in the order of their names, each as the bytes it lies in.

Invariant: two states with equal layouts have the same names, element types and shapes, and the
digest of a state depends on these and on every bit, on nothing else.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pccl.base.errors import UsageError
from pccl.collectives.buffers import Buffer, describe, require_writable
from pccl.collectives.dtypes import ITEM_BYTES, Dtype
from pccl.transport.digests import XXH3_BYTES, xxh3, xxh3_blocks

Bytes = npt.NDArray[np.uint8]

NAME_BYTES_MAX: Final = 4096
DIMENSIONS_MAX: Final = 64
CELL_BYTES_MAX: Final = 8  # the widest integer; a complex128 is two cells
TENSORS_MAX: Final = 1 << 20  # a model of a thousand layers of a thousand experts


@dataclass(frozen=True, slots=True)
class Spec:
    """What one tensor of a state is."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        count = ITEM_BYTES[self.dtype]
        for side in self.shape:
            count *= side
        return count

    @property
    def cell_bytes(self) -> int:
        """Size of what is compared and sent: one element, or half of a complex128."""
        return min(ITEM_BYTES[self.dtype], CELL_BYTES_MAX)

    def __str__(self) -> str:
        return f"{self.dtype.label}{list(self.shape)}"


@dataclass(slots=True)
class Tensor:
    """One tensor of the caller: what it is, and its memory, borrowed through `buffer`."""

    spec: Spec
    memory: Bytes
    buffer: Buffer


def tensors_of(state: Mapping[str, Any], *, writable: bool = False) -> tuple[Tensor, ...]:
    """Returns the tensors of a state, by name; no element is copied.

    Args:
        state: numpy arrays or torch CPU tensors by name, contiguous, of any dtype that pccl knows.
        writable: whether they are to be written.

    Raises:
        UsageError: says which tensor is unusable, and why.
    """
    if not isinstance(state, Mapping):
        raise UsageError(f"the state is a {type(state).__name__}; pass tensors by name")
    if len(state) > TENSORS_MAX:
        raise UsageError(f"the state has {len(state)} tensors; at most {TENSORS_MAX} are possible")
    for name in state:
        if not isinstance(name, str) or not 0 < len(_encoded(name)) <= NAME_BYTES_MAX:
            raise UsageError(f"{name!r} names no tensor: a name is 1 to {NAME_BYTES_MAX} bytes")
    found = []
    for name in sorted(state):
        buffer = describe(state[name], name=name)
        if writable:
            require_writable(buffer, name, "pass a writable array")
        if len(buffer.shape) > DIMENSIONS_MAX:
            raise UsageError(f"{name} has {len(buffer.shape)} dimensions, over {DIMENSIONS_MAX}")
        spec = Spec(name, buffer.dtype, tuple(int(side) for side in buffer.shape))
        found.append(Tensor(spec, memory_of(buffer), buffer))
    return tuple(found)


def difference(expected: Sequence[Spec], found: Sequence[Spec]) -> str | None:
    """Names the first difference of two layouts, both sorted by name; None if there is none."""
    wanted, given = {s.name: s for s in expected}, {s.name: s for s in found}
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            return f"{name} is missing: expected {wanted[name]}"
        if name not in wanted:
            return f"{name} is not part of the state that is published"
        if wanted[name] != given[name]:
            return f"{name} is {given[name]}, expected {wanted[name]}"
    return None


def tensor_digest(memory: Bytes) -> bytes:
    """Returns XXH3-128 of a tensor's bytes."""
    if memory.size == 0:
        return xxh3(b"")
    return xxh3_blocks(memory.ctypes.data, memory.size, memory.size)


def state_digest(specs: Sequence[Spec], digests: Sequence[bytes]) -> bytes:
    """Returns one digest of a whole state from those of its tensors, both in order of names."""
    parts = [struct.pack("<I", len(specs))]
    for spec, digest in zip(specs, digests, strict=True):
        assert len(digest) == XXH3_BYTES
        parts += [encode_spec(spec), digest]
    return xxh3(b"".join(parts))


def encode_spec(spec: Spec) -> bytes:
    """Returns the bytes of a spec: its name with the length in front, type, sides."""
    name = _encoded(spec.name)
    head = struct.pack("<H", len(name)) + name
    sides = struct.pack(f"<{len(spec.shape)}Q", *spec.shape)
    return head + struct.pack("<BB", int(spec.dtype), len(spec.shape)) + sides


def memory_of(buffer: Buffer) -> Bytes:
    """Views the memory of an array as bytes; the buffer must outlive the view."""
    if buffer.byte_count == 0:
        return np.zeros(0, np.uint8)
    raw = (ctypes.c_uint8 * buffer.byte_count).from_address(buffer.address)
    return np.ctypeslib.as_array(raw)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")

"""The bytes of one update: an anchor, which holds a whole state, or a delta from one to the next.

    update   = "PCW1", kind u8, revision u64, base digest, digest, tensors of the state u32,
               records u32, and the records
    record   = name, dtype u8, sides u8, u64 each; digest of the tensor as it becomes; sections u32
    section  = segment u32, coding u8, and FULL: the segment's bytes; SPARSE: changed cells u32,
               bytes per digit u8, digits u32, the planes of the digits and those of the values
    plane    = coding u8, bytes u32, and the bytes

All numbers are little-endian.  A *segment* is 4 MiB of a tensor: each is sent as what is smaller,
only its changed cells or all of it, so that a tensor of which one row changed costs one row, and
coding needs no more memory for a large tensor than for a small one.  Values are absolute: what is
applied twice does no harm.

Invariant: whatever bytes come in, `parse` and `Section.put_into` raise RemoteError or give what an
encoder could have written, and allocate in proportion to the segment at hand.
Source: SparseRL-Sync (arXiv 2605.07330), PULSE (arXiv 2602.03839); coding and layout are our own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pccl.base.errors import RemoteError
from pccl.collectives.dtypes import Dtype
from pccl.transport.digests import XXH3_BYTES
from pccl.weights import streams
from pccl.weights.layout import (
    DIMENSIONS_MAX,
    NAME_BYTES_MAX,
    TENSORS_MAX,
    Bytes,
    Spec,
    Tensor,
    encode_spec,
    state_digest,
    tensor_digest,
)

SEGMENT_BYTES: Final = 4 << 20
FULL: Final = 0
SPARSE: Final = 1
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
NO_BASE: Final = bytes(XXH3_BYTES)
_MAGIC: Final = b"PCW1"
_HEAD: Final = struct.Struct("<4sBQ16s16sII")
_SECTION: Final = struct.Struct("<IB")
_SPARSE: Final = struct.Struct("<IBI")
_PLANE: Final = struct.Struct("<BI")
RECORD_BYTES: Final = XXH3_BYTES + 4  # behind its spec


class Kind(IntEnum):
    """What an update builds on."""

    ANCHOR = 0  # nothing
    DELTA = 1  # the state whose digest is its base


@dataclass(frozen=True, slots=True)
class Patch:
    """What a segment of the baseline becomes: all of it, or the cells at some positions."""

    tensor: int
    start: int
    positions: npt.NDArray[np.uint32] | None
    cells: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """How a state differs from the baseline, before anything has been changed."""

    digests: tuple[bytes, ...]  # of all tensors, as they are now
    digest: bytes
    payload: bytes
    patches: tuple[Patch, ...]
    changed: int
    total: int


# ---- encoding


def encode_anchor(tensors: Sequence[Tensor], digests: Sequence[bytes], revision: int) -> bytes:
    """Returns an update that holds every byte of a state.  Cost: one copy of it."""
    specs = [tensor.spec for tensor in tensors]
    digest = state_digest(specs, digests)
    parts: list[bytes | memoryview] = [
        _HEAD.pack(_MAGIC, Kind.ANCHOR, revision, NO_BASE, digest, len(specs), len(specs))
    ]
    for tensor, own in zip(tensors, digests, strict=True):
        starts = range(0, tensor.memory.size, SEGMENT_BYTES)
        parts.append(encode_spec(tensor.spec) + own + struct.pack("<I", len(starts)))
        for number, start in enumerate(starts):
            parts.append(_SECTION.pack(number, FULL))
            parts.append(tensor.memory[start : start + SEGMENT_BYTES].data)
    return b"".join(parts)


def encode_delta(
    tensors: Sequence[Tensor],
    baseline: Sequence[Bytes],
    digests: Sequence[bytes],
    revision: int,
    base: bytes,
    each: Each = map,
) -> Difference:
    """Returns what differs from the baseline; changes nothing.

    Args:
        tensors: the state now; nobody may write to it meanwhile.
        baseline: the bytes of the last revision, tensor by tensor.
        digests: of the baseline's tensors.
        base: digest of the baseline as a whole.
        each: as `map`; that of a pool of threads codes segments side by side.

    Cost: reads state and baseline once, and each tensor that has changed once more for its digest.
    """
    places = [
        (number, start)
        for number, old in enumerate(baseline)
        for start in range(0, old.size, SEGMENT_BYTES)
    ]

    def code(place: tuple[int, int]) -> _Coded | None:
        number, start = place
        end = start + SEGMENT_BYTES
        old, tensor = baseline[number], tensors[number]
        return _code_segment(old[start:end], tensor.memory[start:end], tensor.spec.cell_bytes)

    sections: dict[int, list[bytes]] = {}
    patches: list[Patch] = []
    changed = 0
    for (number, start), coded in zip(places, each(code, places), strict=True):
        if coded is not None:
            head = _SECTION.pack(start // SEGMENT_BYTES, coded.coding)
            sections.setdefault(number, []).extend((head, coded.body))
            patches.append(Patch(number, start, coded.positions, coded.cells))
            changed += coded.count
    new_digests = list(digests)
    memories = [tensors[number].memory for number in sections]
    for number, own in zip(sections, each(tensor_digest, memories), strict=True):
        new_digests[number] = own
    digest = state_digest([tensor.spec for tensor in tensors], new_digests)
    parts = [_HEAD.pack(_MAGIC, Kind.DELTA, revision, base, digest, len(tensors), len(sections))]
    for number, bodies in sections.items():
        parts += [encode_spec(tensors[number].spec), new_digests[number]]
        parts += [struct.pack("<I", len(bodies) // 2), *bodies]
    total = sum(tensor.memory.size // tensor.spec.cell_bytes for tensor in tensors)
    return Difference(tuple(new_digests), digest, b"".join(parts), tuple(patches), changed, total)


@dataclass(frozen=True, slots=True)
class _Coded:
    """One segment that has changed: its section's body, and what the baseline becomes there."""

    coding: int
    body: bytes
    positions: npt.NDArray[np.uint32] | None
    cells: npt.NDArray[Any]
    count: int


def _code_segment(old: Bytes, new: Bytes, width: int) -> _Coded | None:
    positions = streams.changed_cells(old, new, width)
    if not positions.size:
        return None
    cells = new.view(streams.unsigned(width))[positions]
    digit_bytes, digits = streams.encode_positions(positions)
    parts = [_SPARSE.pack(positions.size, digit_bytes, digits.size)]
    for plane in (*streams.planes(digits), *streams.planes(cells)):
        coding, data = streams.encode_plane(plane)
        parts += [_PLANE.pack(coding, len(data)), data]
    body = b"".join(parts)
    count = int(positions.size)
    if len(body) < new.size:
        return _Coded(SPARSE, body, positions.astype(np.uint32), cells, count)
    whole = new.tobytes()
    return _Coded(FULL, whole, None, np.frombuffer(whole, np.uint8), count)


def advance(baseline: Sequence[Bytes], specs: Sequence[Spec], patches: Sequence[Patch]) -> None:
    """Brings the baseline to the state that the patches were found in.  Cut off by an interrupt, or
    without memory for the positions of a segment, it leaves a mixture."""
    for patch in patches:
        segment = baseline[patch.tensor][patch.start : patch.start + SEGMENT_BYTES]
        if patch.positions is None:
            segment[:] = patch.cells
        else:
            kind = streams.unsigned(specs[patch.tensor].cell_bytes)
            segment.view(kind)[patch.positions] = patch.cells


# ---- decoding


@dataclass(frozen=True, slots=True)
class Section:
    """What one segment becomes, not decoded yet."""

    start: int
    coding: int
    count: int
    digit_bytes: int
    digit_count: int
    planes: tuple[tuple[int, memoryview], ...]  # coding and bytes

    def put_into(self, memory: Bytes, width: int) -> int:
        """Writes it into a tensor's bytes; returns how many cells it has.

        Raises:
            RemoteError: it cannot be decoded; `memory` is unchanged.
        """
        segment = memory[self.start : self.start + SEGMENT_BYTES]
        if self.coding == FULL:
            segment[:] = np.frombuffer(self.planes[0][1], np.uint8)
            return segment.size // width
        sizes = [self.digit_count] * self.digit_bytes + [self.count] * width
        decoded = [
            streams.decode_plane(coding, data, size)
            for (coding, data), size in zip(self.planes, sizes, strict=True)
        ]
        digits = streams.from_planes(decoded[: self.digit_bytes])
        cells = segment.view(streams.unsigned(width))
        positions = streams.decode_positions(digits, self.count, cells.size)
        cells[positions] = streams.from_planes(decoded[self.digit_bytes :])
        return self.count


@dataclass(frozen=True, slots=True)
class Record:
    """What one tensor becomes."""

    spec: Spec
    digest: bytes
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """A parsed update; it borrows the bytes that it was parsed from."""

    kind: Kind
    revision: int
    base: bytes
    digest: bytes
    tensors: int
    records: dict[str, Record]


class _Reader:
    """Takes values off the front of some bytes; RemoteError where there are not enough."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def bytes(self, count: int) -> memoryview:
        if count > self.left:
            raise RemoteError(f"an update ends {count - self.left} bytes early")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.bytes(layout.size))

    def number(self, byte_count: int) -> int:
        return int.from_bytes(self.bytes(byte_count), "little")


def parse(payload: memoryview, *, state_bytes_max: int) -> Update:
    """Reads an update, apart from its planes.

    Args:
        payload: all of it, in bytes.
        state_bytes_max: no tensor may claim more.

    Raises:
        RemoteError: it is not what an encoder writes.
    """
    reader = _Reader(payload)
    magic, kind, revision, base, digest, tensors, count = reader.unpack(_HEAD)
    if magic != _MAGIC or kind not in (Kind.ANCHOR, Kind.DELTA):
        raise RemoteError("an update begins with what is no head")
    if tensors > TENSORS_MAX or count > tensors or (kind == Kind.ANCHOR and count != tensors):
        raise RemoteError(f"an update of {tensors} tensors has {count} records")
    if (base == NO_BASE) != (kind == Kind.ANCHOR):
        raise RemoteError("an update's kind does not fit its base")
    records: dict[str, Record] = {}
    last = ""
    for _ in range(count):
        record = _record(reader, Kind(kind), state_bytes_max)
        if record.spec.name <= last:
            raise RemoteError("the records of an update are not in the order of their names")
        last = record.spec.name
        records[last] = record
    if reader.left:
        raise RemoteError(f"{reader.left} bytes follow an update's end")
    return Update(Kind(kind), revision, base, digest, tensors, records)


def _record(reader: _Reader, kind: Kind, state_bytes_max: int) -> Record:
    length = reader.number(2)
    if not 0 < length <= NAME_BYTES_MAX:
        raise RemoteError(f"a tensor's name has {length} bytes")
    try:
        name = bytes(reader.bytes(length)).decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise RemoteError(f"a tensor's name is no text: {error}") from error
    dtype, sides = reader.number(1), reader.number(1)
    if dtype not in Dtype._value2member_map_ or sides > DIMENSIONS_MAX:
        raise RemoteError(f"{name} has the element type {dtype} and {sides} dimensions")
    shape = tuple(reader.number(8) for _ in range(sides))
    if any(side > state_bytes_max for side in shape) and 0 not in shape:
        raise RemoteError(f"{name} of {list(shape)} is larger than the state")
    spec = Spec(name, Dtype(dtype), shape)
    size = spec.byte_count
    if size > state_bytes_max:
        raise RemoteError(f"{name} of {size} bytes is larger than the state of {state_bytes_max}")
    digest = bytes(reader.bytes(XXH3_BYTES))
    count, segments = reader.number(4), -(-size // SEGMENT_BYTES)
    if count > segments or (count < segments and kind == Kind.ANCHOR):
        raise RemoteError(f"{name} of {segments} segments has {count} sections")
    found: list[Section] = []
    for _ in range(count):
        section = _section(reader, spec, size)
        if found and section.start <= found[-1].start:
            raise RemoteError(f"the sections of {name} are not in order")
        found.append(section)
    return Record(spec, digest, tuple(found))


def _section(reader: _Reader, spec: Spec, size: int) -> Section:
    segment, coding = reader.unpack(_SECTION)
    start = segment * SEGMENT_BYTES
    if start >= size:
        raise RemoteError(f"{spec.name} has no segment {segment}")
    segment_bytes = min(SEGMENT_BYTES, size - start)
    if coding == FULL:
        return Section(start, FULL, 0, 0, 0, ((streams.RAW, reader.bytes(segment_bytes)),))
    if coding != SPARSE:
        raise RemoteError(f"a section of {spec.name} has the unknown coding {coding}")
    count, digit_bytes, digits = reader.unpack(_SPARSE)
    cells = segment_bytes // spec.cell_bytes
    if not 0 < count <= cells or digit_bytes not in (1, 2):
        raise RemoteError(f"a section of {spec.name} changes {count} of {cells} cells")
    if not count <= digits <= streams.digits_max(count, cells, digit_bytes):
        raise RemoteError(f"a section of {spec.name} has {digits} digits for {count} cells")
    planes = []
    for _ in range(digit_bytes + spec.cell_bytes):
        plane_coding, plane_bytes = reader.unpack(_PLANE)
        planes.append((plane_coding, reader.bytes(plane_bytes)))
    return Section(start, SPARSE, count, digit_bytes, digits, tuple(planes))

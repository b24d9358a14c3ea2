"""Files of tensors in the safetensors format, written and read piece by piece.

    u64 length of the header, little-endian | header, JSON | contents, one after the other

Written here so that a state is never copied as a whole; whatever reads safetensors reads them.
Source: the format's description in the safetensors project's README.

Invariant: `read_header` returns tensors that lie within the file and do not overlap, or raises
RemoteError; a length in the file is believed only after it was compared with the file's size.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Final

from pccl.base.errors import RemoteError
from pccl.collectives.dtypes import Dtype
from pccl.state.layout import Entry, Layout

HEADER_BYTES_MAX: Final = 100_000_000  # the format's own limit
_LENGTH = struct.Struct("<Q")

# As the format calls them; what it has no word for is stored as bytes.
_NAMES: Final[Mapping[Dtype, str]] = {
    Dtype.F64: "F64",
    Dtype.F32: "F32",
    Dtype.F16: "F16",
    Dtype.BF16: "BF16",
    Dtype.I8: "I8",
    Dtype.U8: "U8",
    Dtype.I16: "I16",
    Dtype.U16: "U16",
    Dtype.I32: "I32",
    Dtype.U32: "U32",
    Dtype.I64: "I64",
    Dtype.U64: "U64",
    Dtype.BOOL: "BOOL",
    Dtype.C64: "C64",
    Dtype.F8_E4M3FN: "F8_E4M3",
    Dtype.F8_E5M2: "F8_E5M2",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes lie in its file."""

    offset: int
    byte_count: int


def write_header(file: BinaryIO, entries: Iterable[Entry], about: Mapping[str, str]) -> None:
    """Writes what stands before the contents of these tensors, which follow in this order.

    Args:
        about: for people and for other programs.
    """
    header: dict[str, object] = {"__metadata__": dict(about)}
    at = 0
    for entry in entries:
        name = _NAMES.get(entry.dtype)
        header[entry.name] = {
            "dtype": name or "U8",
            "shape": list(entry.shape) if name else [entry.byte_count],
            "data_offsets": [at, at + entry.byte_count],
        }
        at += entry.byte_count
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that contents are aligned
    file.write(_LENGTH.pack(len(encoded)) + encoded)


def read_header(file: BinaryIO, layout: Layout) -> dict[str, Place]:
    """Returns where the tensors of `layout` lie in the file; others are left out.

    Raises:
        RemoteError: the file is none of this format, or cut short.
        OSError: it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if not 0 < length <= min(HEADER_BYTES_MAX, size - _LENGTH.size):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
        sizes = {entry.name: entry.byte_count for entry in layout.entries}
        start, places = _LENGTH.size + length, {}
        for name, row in header.items():
            if name not in sizes:
                continue
            first, last = row["data_offsets"]
            if type(first) is not int or type(last) is not int:
                raise ValueError(f"{name!r} lies nowhere")
            if first < 0 or last - first != sizes[name] or start + last > size:
                raise ValueError(f"{name!r} has another size, or lies beyond the end")
            places[name] = Place(start + first, last - first)
        ordered = sorted(places.values(), key=lambda place: (place.offset, place.byte_count))
        if any(a.offset + a.byte_count > b.offset for a, b in pairwise(ordered)):
            raise ValueError("two tensors overlap")
        return places
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RemoteError(f"no file of tensors: {error}") from error

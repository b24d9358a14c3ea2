"""Which elements of a tensor matter, and where they are, in as few bits as that takes.

The definition is in `native/include/pccl/sparse.hpp`.  Invariant: `places` of n elements are what
`TopK.select` makes, or another list of the same length, block by block ascending; anything else is
refused before it is used as an index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pccl.base.errors import RemoteError, UsageError
from pccl.collectives.buffers import Buffer, describe, require_writable
from pccl.collectives.dtypes import Dtype
from pccl.transport import kernels

BLOCK_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class TopK:
    """The `k` elements of largest magnitude of every `block` in a row; the last may be shorter.

    SparseLoCo's defaults, arXiv:2508.15706: 64 of 4096.
    """

    block: int = 4096
    k: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.block <= BLOCK_MAX:
            raise UsageError(
                f"1 <= k <= block <= {BLOCK_MAX} must hold, not k={self.k!r}, block={self.block!r}"
            )

    def kept(self, count: int) -> int:
        """Returns how many of `count` elements are kept."""
        blocks, rest = divmod(count, self.block)
        return blocks * self.k + min(rest, self.k)

    def coded_bytes_max(self, count: int) -> int:
        """Returns the size that no code of the places in `count` elements exceeds."""
        return kernels.index_bytes_max(count, self.block, self.k)

    def select(self, array: Any, places: Any) -> None:
        """Finds the elements of largest magnitude, exactly.

        Args:
            array: f32, C-contiguous; only read.
            places: u16[kept(count)]; is overwritten with the places in each block, ascending.  Of
                equal magnitudes the first is taken; NaN counts as larger than infinity.

        Raises:
            UsageError: an argument is not as described; nothing was written.

        Cost: two passes over a block that is in the cache, about a third of the speed of reading
        the array from memory.
        """
        source = _expect(array, "the array", Dtype.F32, None)
        target = _expect(places, "places", Dtype.U16, self.kept(source.count))
        require_writable(target, "places", "pass a writable array")
        kernels.top_k(target.address, source.address, source.count, self.block, self.k)

    def encode(self, places: Any, count: int, coded: Any) -> int:
        """Codes the places of `count` elements; returns the bytes written.

        Args:
            places: u16[kept(count)], as `select` makes them.
            coded: u8[coded_bytes_max(count)].

        Raises:
            UsageError: an argument is not as described; nothing was written.

        Cost: 7.5 bits for each place at the defaults, where 7.36 is the least possible.
        """
        source = _expect(places, "places", Dtype.U16, self.kept(count))
        target = _expect(coded, "coded", Dtype.U8, self.coded_bytes_max(count))
        require_writable(target, "coded", "pass a writable array")
        if not kernels.are_places(source.address, count, self.block, self.k):
            raise UsageError("places are not ascending within each block, or beyond it")
        return kernels.encode_indices(target.address, source.address, count, self.block, self.k)

    def decode(self, coded: Any, count: int, places: Any) -> None:
        """Makes the places again of what `encode` has made of them, maybe elsewhere.

        Raises:
            UsageError: an array is not as described in `encode`; nothing was written.
            RemoteError: these bytes are no code of places in `count` elements; what `places` holds
                now means nothing.
        """
        source = _expect(coded, "coded", Dtype.U8, None)
        target = _expect(places, "places", Dtype.U16, self.kept(count))
        require_writable(target, "places", "pass a writable array")
        if not kernels.decode_indices(
            target.address, source.address, source.count, count, self.block, self.k
        ):
            raise RemoteError(f"{source.count} bytes are no code of places in {count} elements")


def _expect(array: Any, name: str, dtype: Dtype, count: int | None) -> Buffer:
    buffer = describe(array, name=name)
    if buffer.dtype is not dtype or count not in (None, buffer.count):
        size = "" if count is None else f"[{count}]"
        raise UsageError(
            f"{name} must be {dtype.label}{size}, not {buffer.dtype.label}[{buffer.count}]"
        )
    return buffer

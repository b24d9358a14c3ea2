"""The native core's kernels on arrays of this process, beside any engine.

Pure functions of memory; the GIL is released while they run.  Memory is given as addresses, which
the caller has checked.
"""

from __future__ import annotations

from pccl.transport.native_core import load_native


def coded_bytes(codec: int, count: int) -> int:
    """Returns the bytes that `encode` writes."""
    return int(load_native().coded_bytes(codec, count))


def encode(codec: int, out_address: int, in_address: int, count: int, seed: int) -> None:
    """Quantises `count` f32; `seed` counts where rounding is stochastic."""
    load_native().encode(codec, out_address, in_address, count, seed)


def decode(codec: int, out_address: int, in_address: int, count: int) -> None:
    """Makes `count` f32 of what `encode` has made."""
    load_native().decode(codec, out_address, in_address, count)


def count_not_finite(dtype: int, address: int, count: int) -> int:
    """Returns how many elements are NaN or infinite, of f64, f32, f16 or bf16."""
    return int(load_native().count_not_finite(dtype, address, count))


def top_k(
    places_address: int,
    in_address: int,
    rows: int,
    columns: int,
    block_rows: int,
    block_columns: int,
    k: int,
) -> None:
    """Writes the ascending places, u16, of the k largest magnitudes of each block of an f32 matrix,
    blocks in row-major order.  ValueError if the blocks do not fill the matrix."""
    load_native().top_k(in_address, rows, columns, block_rows, block_columns, k, places_address)

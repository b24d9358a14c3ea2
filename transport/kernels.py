"""The native core's kernels on arrays of this process, beside any engine.

Pure functions of memory; the GIL is released while they run.  Memory is given as addresses, which
the caller has checked.
"""

from __future__ import annotations

from pccl.transport.native_core import load_native


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

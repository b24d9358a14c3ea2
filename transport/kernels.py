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


def top_k(places_address: int, in_address: int, count: int, block: int, k: int) -> None:
    """Writes the places, u16, of the k largest magnitudes of each block of f32."""
    load_native().top_k(places_address, in_address, count, block, k)


def index_bytes_max(count: int, block: int, k: int) -> int:
    """Returns the bytes that `encode_indices` may write."""
    return int(load_native().index_bytes_max(count, block, k))


def are_places(places_address: int, count: int, block: int, k: int) -> bool:
    """Says whether places ascend within each block and lie in it."""
    return bool(load_native().are_places(places_address, count, block, k))


def encode_indices(out_address: int, places_address: int, count: int, block: int, k: int) -> int:
    """Codes places; returns the bytes written."""
    return int(load_native().encode_indices(out_address, places_address, count, block, k))


def decode_indices(
    places_address: int, coded_address: int, coded_bytes: int, count: int, block: int, k: int
) -> bool:
    """Makes places again; False if the bytes are no code of such."""
    return bool(
        load_native().decode_indices(places_address, coded_address, coded_bytes, count, block, k)
    )

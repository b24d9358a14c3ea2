// native/include/pccl/sparse.hpp — the elements of a tensor that matter, and where they are.
//
// Contract.  An array of f32 is cut into blocks of `block` elements, the last may be shorter.
// top_k: of each block the `k` elements of largest magnitude (all, if it has no more), by their
//   places in the block, ascending.  Exact: of equal magnitudes the one that comes first is taken;
//   NaN counts as larger than infinity, one NaN as much as another.
// Index code: the places of all blocks, as gaps (the first place; then place - the one before - 1),
//   each in Golomb-Rice code with the parameter rice_bits(): as many ones as gap >> bits, a zero,
//   and the low bits of the gap, lowest first.  Bits fill bytes from the lowest up; the last byte
//   is filled up with zeros.  For 64 of 4096 at random places that is 7.5 bits each, where
//   log2 C(4096, 64) / 64 = 7.36 is the least possible.
// Ownership: all memory is the caller's, any alignment of the array.
// Threads:   pure functions.
// Errors:    decode_indices says false of any bytes that are not exactly what encode_indices makes.
// Source:    SparseLoCo, arXiv:2508.15706; Golomb 1966, doi:10.1109/TIT.1966.1053907; Rice 1979.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pccl {

inline constexpr std::uint32_t sparse_block_max = 1u << 16;  // places are 16 bits

/// How an array is thinned out.  1 <= k <= block <= sparse_block_max.
struct Sparsity {
  std::uint32_t block = 4096;
  std::uint32_t k = 64;

  [[nodiscard]] constexpr bool valid() const noexcept {
    return k >= 1 && k <= block && block <= sparse_block_max;
  }
  /// Elements of `count` that are kept.
  [[nodiscard]] constexpr std::uint64_t kept(std::uint64_t count) const noexcept {
    const std::uint64_t rest = count % block;
    return count / block * k + (rest < k ? rest : k);
  }
};

/// The parameter of the index code: floor(log2(ln 2 * block / k)), at least 0.
std::uint32_t rice_bits(const Sparsity& sparsity) noexcept;
/// No index code of that many elements is longer.
std::uint64_t index_bytes_max(const Sparsity& sparsity, std::uint64_t count) noexcept;

/// places[0 .. kept(count)).  False: there is no memory.
bool top_k(const void* in, std::uint64_t count, const Sparsity& sparsity,
           std::uint16_t* places) noexcept;
/// Places that ascend within each block, and lie in it.
bool are_places(const std::uint16_t* places, std::uint64_t count,
                const Sparsity& sparsity) noexcept;
/// Of such places; returns the bytes written, index_bytes_max(count) at most.
std::uint64_t encode_indices(const std::uint16_t* places, std::uint64_t count,
                             const Sparsity& sparsity, std::byte* out) noexcept;
bool decode_indices(std::span<const std::byte> coded, std::uint64_t count,
                    const Sparsity& sparsity, std::uint16_t* places) noexcept;

}  // namespace pccl

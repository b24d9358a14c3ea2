// native/include/pccl/top_k.hpp — the largest magnitudes of every block of a matrix, exactly.
// Contract: of each block the `k` elements with the largest magnitude, positions ascending.  The
// magnitude of a float is its bits without the sign, so a NaN is larger than an infinity; of equal
// magnitudes the first positions are taken.  Every CPU gives the same answer.
// Theory:   magnitudes order like unsigned integers.  A limit is moved, in integers, that is by
// ratios of magnitudes, until a few more than k elements reach it; among these the k-th is selected
// exactly.  Neighbouring blocks are alike, so what one came to is the first guess for the next, and
// mostly one pass does: a third of the speed of reading memory.
// Ownership: all memory is the caller's.
// Threads:   pure functions.
// Errors:    out of memory throws std::bad_alloc; the caller checks the shape: see `sound`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pccl {

/// A row-major matrix that is divided into equal blocks without a rest.
struct BlockShape {
  std::size_t rows;
  std::size_t columns;
  std::size_t block_rows;     // divides rows
  std::size_t block_columns;  // divides columns

  [[nodiscard]] std::size_t block_size() const noexcept { return block_rows * block_columns; }
  [[nodiscard]] std::size_t blocks() const noexcept {
    return (rows / block_rows) * (columns / block_columns);
  }
  /// Positions fit 16 bits and the blocks fill the matrix.
  [[nodiscard]] bool sound() const noexcept;
};

/// Writes `k` positions (row-major within the block) for each block, blocks in row-major order.
/// Requires shape.sound() and 1 <= k <= shape.block_size().  Cost: one pass over memory, and mostly
/// none besides.
void top_k(const float* values, const BlockShape& shape, std::size_t k, std::uint16_t* positions);

}  // namespace pccl

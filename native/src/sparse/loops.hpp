// native/src/sparse/loops.hpp — the loops of top_k that are compiled for each instruction set.
// Ownership: constants of the program.
// Threads:   any.
// Errors:    none; loops that this CPU cannot run must not be called: see available_top_k_loops().
#pragma once

#include <cstddef>
#include <cstdint>

namespace pccl {

/// One block of a row-major matrix, read where it lies.
struct Tile {
  const float* values;
  std::size_t rows;
  std::size_t width;
  std::size_t stride;  // elements from one row to the next
};

/// What reaches a limit: places in the tile, ascending, and magnitudes.  Both have room for the
/// tile's elements and `slack` more, which are written and mean nothing.
struct Reached {
  static constexpr std::size_t slack = 32;
  std::uint16_t* places;
  std::int32_t* magnitudes;
};

struct TopKLoops {
  /// Returns how many elements have a magnitude of at least `limit`.
  std::size_t (*count)(const Tile& tile, std::int32_t limit) noexcept;
  /// Writes those, and returns how many they are.  Rows to come, and those of the next tile to the
  /// right, are fetched meanwhile.
  std::size_t (*gather)(const Tile& tile, std::int32_t limit, Reached reached) noexcept;
  /// Returns how many of `bits` are at least `limit`.
  std::size_t (*count_of)(const std::int32_t* bits, std::size_t count,
                          std::int32_t limit) noexcept;
};

extern const TopKLoops scalar_top_k_loops;
#if defined(__x86_64__)
extern const TopKLoops avx2_top_k_loops;
extern const TopKLoops avx512_top_k_loops;
#endif

/// Those that this CPU can run, the reference first, the best last.
struct AvailableTopKLoops { const TopKLoops* loops[3]; std::size_t count; };
AvailableTopKLoops available_top_k_loops() noexcept;

}  // namespace pccl

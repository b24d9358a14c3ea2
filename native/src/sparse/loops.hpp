// native/src/sparse/loops.hpp — the loops of top_k that are compiled for each instruction set.
// Ownership: constants of the program.
// Threads:   any.
// Errors:    none; loops that this CPU cannot run must not be called: see available_top_k_loops().
#pragma once

#include <cstddef>
#include <cstdint>

namespace pccl {

struct TopKLoops {
  /// bits[i] = the magnitude of values[i].
  void (*magnitudes)(const float* values, std::size_t count, std::int32_t* bits) noexcept;
  /// Returns how many of `bits` are at least `limit`.
  std::size_t (*count)(const std::int32_t* bits, std::size_t count, std::int32_t limit) noexcept;
  /// Writes the indices of those, ascending, and returns how many they are; `found` has room for
  /// `count`, at most 65536.
  std::size_t (*gather)(const std::int32_t* bits, std::size_t count, std::int32_t limit,
                        std::uint16_t* found) noexcept;
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

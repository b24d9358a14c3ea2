// native/src/sparse/loops_scalar.cpp — the loops of top_k for any CPU of its kind.
// Ownership: one constant.
// Threads:   any.
// Errors:    none; available_top_k_loops() decides who may call this.

#include <bit>
#include <cstring>

#include "loops.hpp"

namespace pccl {
namespace {

constexpr std::size_t step = 8;

inline std::uint32_t reached(const std::int32_t* bits, std::int32_t limit) noexcept {
  std::uint32_t mask = 0;
  for (unsigned i = 0; i < step; ++i) mask |= (bits[i] >= limit ? 1u : 0u) << i;
  return mask;
}

#include "gather.inc"
#include "loops.inc"

}  // namespace

constinit const TopKLoops scalar_top_k_loops = {magnitudes, count_at_least, gather};

}  // namespace pccl

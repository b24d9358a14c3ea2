// native/src/sparse/loops_scalar.cpp — the loops of top_k for any CPU of its kind.
// Ownership: one constant.
// Threads:   any.
// Errors:    none; available_top_k_loops() decides who may call this.

#include <cstring>

#include "loops.hpp"

namespace pccl {
namespace {

/// None: the plain loop takes all.
inline std::size_t gather_some(const float*, std::size_t, std::int32_t, std::size_t, Reached,
                               std::size_t&) noexcept {
  return 0;
}

#include "loops.inc"

}  // namespace

constinit const TopKLoops scalar_top_k_loops = {count, gather, count_of};

}  // namespace pccl

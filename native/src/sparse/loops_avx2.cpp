// native/src/sparse/loops_avx2.cpp — the loops of top_k for AVX2.
// Ownership: one constant.
// Threads:   any.
// Errors:    none; available_top_k_loops() decides who may call this.

#if !defined(__AVX2__)
#error "compile this file with -mavx2"
#endif

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "loops.hpp"

namespace pccl {
namespace {

constexpr std::size_t step = 32;

inline std::uint32_t reached(const std::int32_t* bits, std::int32_t limit) noexcept {
  const __m256i below = _mm256_set1_epi32(limit - 1);  // a limit is never the least integer
  std::uint32_t mask = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + 8 * i));
    const __m256i more = _mm256_cmpgt_epi32(words, below);
    const int eight = _mm256_movemask_ps(_mm256_castsi256_ps(more));
    mask |= static_cast<std::uint32_t>(eight) << (8 * i);
  }
  return mask;
}

#include "gather.inc"
#include "loops.inc"

}  // namespace

constinit const TopKLoops avx2_top_k_loops = {magnitudes, count_at_least, gather};

}  // namespace pccl

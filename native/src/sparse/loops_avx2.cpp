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

inline std::size_t gather_some(const float* values, std::size_t count, std::int32_t limit,
                               std::size_t place, Reached reached, std::size_t& have) noexcept {
  const __m256i below = _mm256_set1_epi32(limit - 1);  // a limit is never the least integer
  const __m256i without_sign = _mm256_set1_epi32(0x7FFFFFFF);
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    const __m256i bits = _mm256_and_si256(words, without_sign);
    const int eight = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bits, below)));
    for (auto mask = static_cast<std::uint32_t>(eight); mask != 0; mask &= mask - 1, ++have) {
      const std::size_t at = i + static_cast<std::size_t>(std::countr_zero(mask));
      std::int32_t word;
      std::memcpy(&word, values + at, sizeof word);
      reached.places[have] = static_cast<std::uint16_t>(place + at);
      reached.magnitudes[have] = word & 0x7FFFFFFF;
    }
  }
  return i;
}

#include "loops.inc"

}  // namespace

constinit const TopKLoops avx2_top_k_loops = {count, gather, count_of};

}  // namespace pccl

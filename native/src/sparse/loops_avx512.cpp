// native/src/sparse/loops_avx512.cpp — the loops of top_k for AVX-512.
// Ownership: one constant.
// Threads:   any.
// Errors:    none; available_top_k_loops() decides who may call this.

#if !defined(__AVX512BW__)
#error "compile this file with -mavx512f -mavx512bw"
#endif

#include <immintrin.h>

#include <cstring>

#include "loops.hpp"

namespace pccl {
namespace {

/// Every sixteen are compressed, whether one of them reaches the limit or not: a branch on that
/// would be guessed wrong half of the time.
inline std::size_t gather_some(const float* values, std::size_t count, std::int32_t limit,
                               std::size_t place, Reached reached, std::size_t& have) noexcept {
  const __m512i least = _mm512_set1_epi32(limit);
  const __m512i without_sign = _mm512_set1_epi32(0x7FFFFFFF);
  const __m512i one_to_sixteen = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                                                   14, 15);
  __m512i at = _mm512_add_epi32(one_to_sixteen, _mm512_set1_epi32(static_cast<int>(place)));
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
    const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(values + i), without_sign);
    const __mmask16 mask = _mm512_cmpge_epi32_mask(bits, least);
    // To registers and whole from there: compressing into memory is slow on some processors.
    const __m256i places =
        _mm512_maskz_cvtepi32_epi16(0xFFFF, _mm512_maskz_compress_epi32(mask, at));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(reached.places + have), places);
    _mm512_storeu_si512(reached.magnitudes + have, _mm512_maskz_compress_epi32(mask, bits));
    have += static_cast<std::size_t>(__builtin_popcount(mask));
  }
  return i;
}

#include "loops.inc"

}  // namespace

constinit const TopKLoops avx512_top_k_loops = {count, gather, count_of};

}  // namespace pccl

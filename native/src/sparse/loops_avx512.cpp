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
inline std::size_t gather(const std::int32_t* bits, std::size_t count, std::int32_t limit,
                          std::uint16_t* found) noexcept {
  const __m512i least = _mm512_set1_epi32(limit);
  __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  std::size_t have = 0;
  std::size_t i = 0;
  // What is stored behind the last one found lies within `count`, since have <= i.
  for (; i + 16 <= count; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
    const __mmask16 mask = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(bits + i), least);
    const __m256i packed = 
        _mm512_maskz_cvtepi32_epi16(0xFFFF, _mm512_maskz_compress_epi32(mask, at));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(found + have), packed);
    have += static_cast<std::size_t>(__builtin_popcount(mask));
  }
  for (; i < count; ++i)
    if (bits[i] >= limit) found[have++] = static_cast<std::uint16_t>(i);
  return have;
}

#include "loops.inc"

}  // namespace

constinit const TopKLoops avx512_top_k_loops = {magnitudes, count_at_least, gather};

}  // namespace pccl

// native/src/xxh3/absorb_avx2.cpp — the lanes of XXH3 in two registers of four.
// Ownership: all memory is the caller's, any alignment.
// Threads:   pure functions.
// Errors:    none; available_absorbers() decides who may call this.

#if !defined(__AVX2__)
#error "compile this file with -mavx2"
#endif

#include <immintrin.h>

#include "absorb.hpp"

namespace pccl {
namespace {

__m256i read(const void* bytes) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
}

/// Swaps the 64-bit halves of each 128 bits: lane i gets what belongs to lane i xor 1.
__m256i neighbours(__m256i words) { return _mm256_shuffle_epi32(words, _MM_SHUFFLE(1, 0, 3, 2)); }

__m256i taken(__m256i lanes, __m256i words, __m256i secret) {
  const __m256i keyed = _mm256_xor_si256(words, secret);
  const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
  return _mm256_add_epi64(lanes, _mm256_add_epi64(product, neighbours(words)));
}

__m256i scrambled(__m256i lanes, __m256i secret) {
  const __m256i mixed =
      _mm256_xor_si256(_mm256_xor_si256(lanes, _mm256_srli_epi64(lanes, 47)), secret);
  const __m256i prime = _mm256_set1_epi64x(0x9E3779B1);
  const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime);
  return _mm256_add_epi64(_mm256_mul_epu32(mixed, prime), _mm256_slli_epi64(high, 32));
}

struct Avx2Lanes {
  __m256i low;
  __m256i high;

  explicit Avx2Lanes(const std::uint64_t* held) : low(read(held)), high(read(held + 4)) {}
  void save(std::uint64_t* held) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(held), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(held + 4), high);
  }
  void accumulate(const unsigned char* stripe, const unsigned char* secret) {
    low = taken(low, read(stripe), read(secret));
    high = taken(high, read(stripe + 32), read(secret + 32));
  }
  void scramble(const unsigned char* secret) {
    low = scrambled(low, read(secret));
    high = scrambled(high, read(secret + 32));
  }
};

#include "absorb.inc"

}  // namespace

void xxh3_absorb_avx2(std::uint64_t* lanes, const unsigned char* input, std::size_t size,
                      const unsigned char* secret) noexcept {
  absorb<Avx2Lanes>(lanes, input, size, secret);
}

}  // namespace pccl

// native/src/xxh3/absorb_avx512.cpp — the lanes of XXH3 in one register of eight.
// Ownership: all memory is the caller's, any alignment.
// Threads:   pure functions.
// Errors:    none; available_absorbers() decides who may call this.

#if !defined(__AVX512F__)
#error "compile this file with -mavx512f"
#endif

#include <immintrin.h>

#include "absorb.hpp"

namespace pccl {
namespace {

struct Avx512Lanes {
  __m512i lanes;

  explicit Avx512Lanes(const std::uint64_t* held) : lanes(_mm512_loadu_si512(held)) {}
  void save(std::uint64_t* held) const { _mm512_storeu_si512(held, lanes); }

  void accumulate(const unsigned char* stripe, const unsigned char* secret) {
    // Masked with all ones, because the plain forms warn about their own undefined operand.
    constexpr __mmask8 all = 0xff;
    const __m512i words = _mm512_loadu_si512(stripe);
    const __m512i keyed = _mm512_xor_si512(words, _mm512_loadu_si512(secret));
    const __m512i upper = _mm512_maskz_srli_epi64(all, keyed, 32);
    const __m512i product = _mm512_maskz_mul_epu32(all, keyed, upper);
    // Lane i gets the word of lane i xor 1: the 64-bit halves of each 128 bits change places.
    const __m512i neighbours = _mm512_maskz_permutex_epi64(all, words, _MM_SHUFFLE(2, 3, 0, 1));
    lanes = _mm512_add_epi64(lanes, _mm512_add_epi64(product, neighbours));
  }
  void scramble(const unsigned char* secret) {
    constexpr __mmask8 all = 0xff;
    const __m512i shifted = _mm512_maskz_srli_epi64(all, lanes, 47);
    const __m512i mixed =
        _mm512_xor_si512(_mm512_xor_si512(lanes, shifted), _mm512_loadu_si512(secret));
    const __m512i prime = _mm512_set1_epi64(0x9E3779B1);
    const __m512i upper = _mm512_maskz_srli_epi64(all, mixed, 32);
    const __m512i high = _mm512_maskz_mul_epu32(all, upper, prime);
    lanes = _mm512_add_epi64(_mm512_maskz_mul_epu32(all, mixed, prime),
                             _mm512_maskz_slli_epi64(all, high, 32));
  }
};

#include "absorb.inc"

}  // namespace

void xxh3_absorb_avx512(std::uint64_t* lanes, const unsigned char* input, std::size_t size,
                        const unsigned char* secret) noexcept {
  absorb<Avx512Lanes>(lanes, input, size, secret);
}

}  // namespace pccl

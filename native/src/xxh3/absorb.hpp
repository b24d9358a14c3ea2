// native/src/xxh3/absorb.hpp — the part of XXH3 that takes time, one function per instruction set.
// Ownership: all memory is the caller's, any alignment.
// Threads:   pure functions.
// Errors:    none; whoever calls one asks available_absorbers() first what this CPU can run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pccl {

constexpr std::size_t xxh3_lane_count = 8;
constexpr std::size_t xxh3_secret_size = 192;
constexpr std::size_t xxh3_stripe_size = 64;
constexpr std::size_t xxh3_block_size = 1024;

/// Takes all of an input of more than 240 bytes into `lanes`: everything up to the final merge.
using Xxh3Absorb = void (*)(std::uint64_t* lanes, const unsigned char* input, std::size_t size,
                            const unsigned char* secret) noexcept;

void xxh3_absorb_scalar(std::uint64_t* lanes, const unsigned char* input, std::size_t size,
                        const unsigned char* secret) noexcept;
#if defined(__x86_64__)
void xxh3_absorb_avx2(std::uint64_t* lanes, const unsigned char* input, std::size_t size,
                      const unsigned char* secret) noexcept;
void xxh3_absorb_avx512(std::uint64_t* lanes, const unsigned char* input, std::size_t size,
                        const unsigned char* secret) noexcept;
#endif

struct Xxh3Absorbers { Xxh3Absorb functions[4]; std::size_t count; };
/// Those that this CPU can run, the scalar one first, the best last.
Xxh3Absorbers available_absorbers() noexcept;

}  // namespace pccl

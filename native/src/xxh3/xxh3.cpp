// native/src/xxh3/xxh3.cpp — XXH3 of every length; long inputs go to the absorber of this CPU.
// Theory: up to 16 bytes are read as two overlapping words, up to 240 bytes are mixed 16 at a time
// into one or two sums, and longer inputs are absorbed into eight lanes that are merged at the end.
// Ownership: input is borrowed for the call.
// Threads:   pure functions; the choice of absorber is made once.
// Errors:    none.
// Source:    doc/xxhash_spec.md of the xxHash project, version 0.2.0.

#include "pccl/xxh3.hpp"

#include <array>
#include <bit>
#include <cstring>

#include "absorb.hpp"

namespace pccl {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie in memory");

using u32 = std::uint32_t;
using u64 = std::uint64_t;
__extension__ typedef unsigned __int128 u128;
using Input = const unsigned char*;

constexpr u64 prime32_1 = 0x9E3779B1;
constexpr u64 prime32_2 = 0x85EBCA77;
constexpr u64 prime32_3 = 0xC2B2AE3D;
constexpr u64 prime64_1 = 0x9E3779B185EBCA87;
constexpr u64 prime64_2 = 0xC2B2AE3D27D4EB4F;
constexpr u64 prime64_3 = 0x165667B19E3779F9;
constexpr u64 prime64_4 = 0x85EBCA77C2B2AE63;
constexpr u64 prime64_5 = 0x27D4EB2F165667C5;
constexpr u64 mix_prime_1 = 0x165667919E3779F9;
constexpr u64 mix_prime_2 = 0x9FB21C651E98DF25;

// The default secret, as little-endian words.
constexpr std::array<u64, 24> secret_words = {
    0xBE4BA423396CFEB8, 0x1CAD21F72C81017C, 0xDB979083E96DD4DE, 0x1F67B3B7A4A44072,
    0x78E5C0CC4EE679CB, 0x2172FFCC7DD05A82, 0x8E2443F7744608B8, 0x4C263A81E69035E0,
    0xCB00C391BB52283C, 0xA32E531B8B65D088, 0x4EF90DA297486471, 0xD8ACDEA946EF1938,
    0x3F349CE33F76FAA8, 0x1D4F0BC7C7BBDCF9, 0x3159B4CD4BE0518A, 0x647378D9C97E9FC8,
    0xC3EBD33483ACC5EA, 0xEB6313FAFFA081C5, 0x49DAF0B751DD0D17, 0x9E68D429265516D3,
    0xFCA1477D58BE162B, 0xCE31D07AD1B8F88F, 0x280416958F3ACB45, 0x7E404BBBCAFBD7AF,
};

template <class Word>
Word read(Input bytes, std::size_t offset) noexcept {
  Word word;
  std::memcpy(&word, bytes + offset, sizeof word);
  return word;
}
Input default_secret() noexcept { return reinterpret_cast<Input>(secret_words.data()); }
u64 secret64(std::size_t offset) noexcept { return read<u64>(default_secret(), offset); }
/// Two neighbouring words of the secret as one key.
u64 key64(std::size_t offset) noexcept { return secret64(offset) ^ secret64(offset + 8); }
u64 key32(std::size_t offset) noexcept {
  return read<u32>(default_secret(), offset) ^ read<u32>(default_secret(), offset + 4);
}

u64 low_of(u128 value) noexcept { return static_cast<u64>(value); }
u64 high_of(u128 value) noexcept { return static_cast<u64>(value >> 64); }
u128 product(u64 a, u64 b) noexcept { return static_cast<u128>(a) * b; }
/// The 128-bit product, its halves xored together.
u64 folded_product(u64 a, u64 b) noexcept {
  const u128 full = product(a, b);
  return low_of(full) ^ high_of(full);
}

u64 avalanche(u64 x) noexcept {
  x = (x ^ (x >> 37)) * mix_prime_1;
  return x ^ (x >> 32);
}
u64 avalanche_of_xxh64(u64 x) noexcept {
  x = (x ^ (x >> 33)) * prime64_2;
  x = (x ^ (x >> 29)) * prime64_3;
  return x ^ (x >> 32);
}

// 1 to 3 bytes: all of them, and their number, in one word.
u32 packed_1to3(Input in, std::size_t size) noexcept {
  return u32{in[size - 1]} | static_cast<u32>(size) << 8 | u32{in[0]} << 16 |
         u32{in[size >> 1]} << 24;
}
u64 low_1to3(Input in, std::size_t size, u64 seed) noexcept {
  return avalanche_of_xxh64((key32(0) + seed) ^ packed_1to3(in, size));
}
u64 high_1to3(Input in, std::size_t size, u64 seed) noexcept {
  const u32 turned = std::rotl(__builtin_bswap32(packed_1to3(in, size)), 13);
  return avalanche_of_xxh64((key32(8) - seed) ^ turned);
}

u64 seed_4to8(u64 seed) noexcept {
  return seed ^ u64{__builtin_bswap32(static_cast<u32>(seed))} << 32;
}
u64 hash64_4to8(Input in, std::size_t size, u64 seed) noexcept {
  const u64 words = read<u32>(in, size - 4) | u64{read<u32>(in, 0)} << 32;
  u64 x = (key64(8) - seed_4to8(seed)) ^ words;
  x = (x ^ std::rotl(x, 49) ^ std::rotl(x, 24)) * mix_prime_2;
  x = (x ^ ((x >> 35) + size)) * mix_prime_2;
  return x ^ (x >> 28);
}
Digest hash128_4to8(Input in, std::size_t size, u64 seed) noexcept {
  const u64 words = read<u32>(in, 0) | u64{read<u32>(in, size - 4)} << 32;
  const u128 full = product((key64(16) + seed_4to8(seed)) ^ words, prime64_1 + (size << 2));
  const u64 high = high_of(full) + (low_of(full) << 1);
  u64 low = low_of(full) ^ (high >> 3);
  low = (low ^ (low >> 35)) * mix_prime_2;
  return {low ^ (low >> 28), avalanche(high)};
}

u64 hash64_9to16(Input in, std::size_t size, u64 seed) noexcept {
  const u64 first = (key64(24) + seed) ^ read<u64>(in, 0);
  const u64 last = (key64(40) - seed) ^ read<u64>(in, size - 8);
  return avalanche(size + __builtin_bswap64(first) + last + folded_product(first, last));
}
Digest hash128_9to16(Input in, std::size_t size, u64 seed) noexcept {
  const u64 last_word = read<u64>(in, size - 8);
  const u64 both = (key64(32) - seed) ^ read<u64>(in, 0) ^ last_word;
  const u64 last = (key64(48) + seed) ^ last_word;
  const u128 full = product(both, prime64_1);
  const u64 high = high_of(full) + last + (last & 0xffffffffU) * (prime32_2 - 1);
  const u64 low = (low_of(full) + (u64{size - 1} << 54)) ^ __builtin_bswap64(high);
  const u128 mixed = product(low, prime64_2);
  return {avalanche(low_of(mixed)), avalanche(high_of(mixed) + high * prime64_2)};
}

/// 16 bytes of input with 16 bytes of secret.
u64 mixed_16(Input in, std::size_t secret_offset, u64 seed) noexcept {
  return folded_product(read<u64>(in, 0) ^ (secret64(secret_offset) + seed),
                        read<u64>(in, 8) ^ (secret64(secret_offset + 8) - seed));
}
/// Two sums; each takes one chunk by mixing and the other chunk as it is.
struct TwoSums {
  u64 first;
  u64 second = 0;
  void take(Input a, Input b, std::size_t secret_offset, u64 seed) noexcept {
    first = (first + mixed_16(a, secret_offset, seed)) ^ (read<u64>(b, 0) + read<u64>(b, 8));
    second = (second + mixed_16(b, secret_offset + 16, seed)) ^ (read<u64>(a, 0) + read<u64>(a, 8));
  }
};

u64 hash64_17to240(Input in, std::size_t size, u64 seed) noexcept {
  u64 sum = size * prime64_1;
  if (size <= 128) {  // pairs of chunks from both ends, the inner ones first
    for (std::size_t pair = (size - 1) / 32 + 1; pair-- > 0;) {
      sum += mixed_16(in + 16 * pair, 32 * pair, seed);
      sum += mixed_16(in + size - 16 * pair - 16, 32 * pair + 16, seed);
    }
    return avalanche(sum);
  }
  for (std::size_t i = 0; i < 8; ++i) sum += mixed_16(in + 16 * i, 16 * i, seed);
  sum = avalanche(sum);
  for (std::size_t i = 8; i < size / 16; ++i)
    sum += mixed_16(in + 16 * i, 16 * (i - 8) + 3, seed);
  return avalanche(sum + mixed_16(in + size - 16, 119, seed));
}
Digest hash128_17to240(Input in, std::size_t size, u64 seed) noexcept {
  TwoSums sums{size * prime64_1};
  if (size <= 128) {
    for (std::size_t pair = (size - 1) / 32 + 1; pair-- > 0;)
      sums.take(in + 16 * pair, in + size - 16 * pair - 16, 32 * pair, seed);
  } else {
    for (std::size_t i = 0; i < 4; ++i)
      sums.take(in + 32 * i, in + 32 * i + 16, 32 * i, seed);
    sums.first = avalanche(sums.first);
    sums.second = avalanche(sums.second);
    for (std::size_t i = 4; i < size / 32; ++i)
      sums.take(in + 32 * i, in + 32 * i + 16, 32 * (i - 4) + 3, seed);
    sums.take(in + size - 16, in + size - 32, 103, u64{0} - seed);  // the later chunk first
  }
  const u64 high =
      sums.first * prime64_1 + sums.second * prime64_4 + (u64{size} - seed) * prime64_2;
  return {avalanche(sums.first + sums.second), u64{0} - avalanche(high)};
}

struct Absorbed {
  std::array<u64, 24> secret;
  std::array<u64, xxh3_lane_count> lanes;

  u64 merged(u64 sum, std::size_t secret_offset) const noexcept {
    const auto* const bytes = reinterpret_cast<Input>(secret.data()) + secret_offset;
    for (std::size_t i = 0; i < xxh3_lane_count; i += 2)
      sum += folded_product(lanes[i] ^ read<u64>(bytes, 8 * i),
                            lanes[i + 1] ^ read<u64>(bytes, 8 * i + 8));
    return avalanche(sum);
  }
  u64 low(std::size_t size) const noexcept { return merged(size * prime64_1, 11); }
  u64 high(std::size_t size) const noexcept {
    return merged(~(size * prime64_2), xxh3_secret_size - 75);
  }
};

Absorbed absorbed(Input in, std::size_t size, u64 seed) noexcept {
  static const Xxh3Absorb absorb = [] {
    const Xxh3Absorbers available = available_absorbers();
    return available.functions[available.count - 1];
  }();
  Absorbed state{secret_words,
                 {prime32_3, prime64_1, prime64_2, prime64_3, prime64_4, prime32_2, prime64_5,
                  prime32_1}};
  for (std::size_t i = 0; i < state.secret.size(); i += 2) {
    state.secret[i] += seed;
    state.secret[i + 1] -= seed;
  }
  absorb(state.lanes.data(), in, size, reinterpret_cast<Input>(state.secret.data()));
  return state;
}

}  // namespace

Xxh3Absorbers available_absorbers() noexcept {
  Xxh3Absorbers available{};
  available.functions[available.count++] = xxh3_absorb_scalar;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) available.functions[available.count++] = xxh3_absorb_avx2;
  if (__builtin_cpu_supports("avx512f"))
    available.functions[available.count++] = xxh3_absorb_avx512;
#endif
  return available;
}

std::uint64_t xxh3_64(std::span<const std::byte> data, std::uint64_t seed) noexcept {
  const std::size_t size = data.size();
  const auto* const in = reinterpret_cast<Input>(data.data());
  if (size > 240) return absorbed(in, size, seed).low(size);
  if (size > 16) return hash64_17to240(in, size, seed);
  if (size > 8) return hash64_9to16(in, size, seed);
  if (size > 3) return hash64_4to8(in, size, seed);
  if (size > 0) return low_1to3(in, size, seed);
  return avalanche_of_xxh64(seed ^ key64(56));
}

Digest xxh3_128(std::span<const std::byte> data, std::uint64_t seed) noexcept {
  const std::size_t size = data.size();
  const auto* const in = reinterpret_cast<Input>(data.data());
  if (size > 240) {
    const Absorbed state = absorbed(in, size, seed);
    return {state.low(size), state.high(size)};
  }
  if (size > 16) return hash128_17to240(in, size, seed);
  if (size > 8) return hash128_9to16(in, size, seed);
  if (size > 3) return hash128_4to8(in, size, seed);
  if (size > 0) return {low_1to3(in, size, seed), high_1to3(in, size, seed)};
  return {avalanche_of_xxh64(seed ^ key64(64)), avalanche_of_xxh64(seed ^ key64(80))};
}

}  // namespace pccl

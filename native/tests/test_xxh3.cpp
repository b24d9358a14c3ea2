// native/tests/test_xxh3.cpp — XXH3 against the reference implementation's answers.
// Ownership: none.
// Threads:   one.
// Errors:    see check.hpp.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../src/xxh3/absorb.hpp"
#include "check.hpp"
#include "pccl/xxh3.hpp"

namespace {

struct Vector {
  std::size_t length;
  std::uint64_t seed;
  std::uint64_t hash64;
  std::uint64_t low;
  std::uint64_t high;
};
constexpr Vector vectors[] = {
#include "xxh3_vectors.inc"
};

/// Byte i is i mod 251, after `shift` bytes that are not part of it.
std::vector<std::byte> pattern(std::size_t length, std::size_t shift = 0) {
  std::vector<std::byte> bytes(shift + length);
  for (std::size_t i = 0; i < length; ++i) bytes[shift + i] = static_cast<std::byte>(i % 251);
  return bytes;
}

std::span<const std::byte> after(const std::vector<std::byte>& bytes, std::size_t shift) {
  return std::span<const std::byte>(bytes).subspan(shift);
}

}  // namespace

TEST(both_hashes_equal_the_reference_at_every_length_and_seed) {
  for (const Vector& vector : vectors) {
    const std::vector<std::byte> input = pattern(vector.length);
    const pccl::Digest digest = pccl::xxh3_128(input, vector.seed);
    CHECK(pccl::xxh3_64(input, vector.seed) == vector.hash64);
    CHECK(digest.low == vector.low);
    CHECK(digest.high == vector.high);
  }
}

TEST(the_vectors_reach_every_length_class) {
  const std::size_t classes[][2] = {{0, 0}, {1, 3}, {4, 8}, {9, 16}, {17, 128}, {129, 240},
                                    {241, 1024}, {1025, SIZE_MAX}};
  for (const auto& bounds : classes)
    CHECK(std::any_of(std::begin(vectors), std::end(vectors), [&](const Vector& vector) {
      return vector.length >= bounds[0] && vector.length <= bounds[1];
    }));
}

TEST(the_seed_defaults_to_zero) {
  for (const std::size_t length : {std::size_t{0}, std::size_t{100}, std::size_t{5000}}) {
    const std::vector<std::byte> input = pattern(length);
    CHECK(pccl::xxh3_64(input) == pccl::xxh3_64(input, 0));
    CHECK(pccl::xxh3_128(input) == pccl::xxh3_128(input, 0));
  }
}

TEST(alignment_of_the_input_does_not_matter) {
  for (const Vector& vector : vectors) {
    if (vector.length > 3000) continue;
    for (const std::size_t shift : {1U, 3U, 8U, 33U}) {
      const std::vector<std::byte> input = pattern(vector.length, shift);
      CHECK(pccl::xxh3_64(after(input, shift), vector.seed) == vector.hash64);
      CHECK(pccl::xxh3_128(after(input, shift), vector.seed).high == vector.high);
    }
  }
}

TEST(every_absorber_of_this_cpu_leaves_the_same_lanes) {
  const pccl::Xxh3Absorbers absorbers = pccl::available_absorbers();
  CHECK(absorbers.count >= 1 && absorbers.functions[0] == pccl::xxh3_absorb_scalar);
  const std::vector<std::byte> secret = pattern(pccl::xxh3_secret_size);
  const auto* const key = reinterpret_cast<const unsigned char*>(secret.data());
  std::vector<std::byte> input(20001);
  std::uint32_t state = 1;
  for (std::byte& byte : input) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<std::byte>(state >> 24);
  }
  std::vector<std::size_t> lengths;
  for (std::size_t length = 241; length < 2400; ++length) lengths.push_back(length);
  for (const std::size_t length : {8191U, 8192U, 8193U, 20000U}) lengths.push_back(length);
  for (const std::size_t length : lengths) {
    const auto* const in = reinterpret_cast<const unsigned char*>(input.data()) + length % 2;
    std::uint64_t expected[pccl::xxh3_lane_count] = {1, 2, 3, 4, 5, ~0ULL, 7, ~8ULL};
    pccl::xxh3_absorb_scalar(expected, in, length, key);
    for (std::size_t i = 1; i < absorbers.count; ++i) {
      std::uint64_t lanes[pccl::xxh3_lane_count] = {1, 2, 3, 4, 5, ~0ULL, 7, ~8ULL};
      absorbers.functions[i](lanes, in, length, key);
      CHECK(std::equal(std::begin(lanes), std::end(lanes), std::begin(expected)));
    }
  }
}

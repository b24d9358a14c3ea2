// native/src/xxh3/absorb_scalar.cpp — the lanes of XXH3 one by one: the reference, for every CPU.
// Ownership: all memory is the caller's, any alignment.
// Threads:   pure functions.
// Errors:    none.

#include "absorb.hpp"

namespace pccl {
namespace {

struct ScalarLanes {
  std::uint64_t lane[xxh3_lane_count];

  explicit ScalarLanes(const std::uint64_t* held) { __builtin_memcpy(lane, held, sizeof lane); }
  void save(std::uint64_t* held) const { __builtin_memcpy(held, lane, sizeof lane); }

  static std::uint64_t word(const unsigned char* bytes, std::size_t index) {
    std::uint64_t value;
    __builtin_memcpy(&value, bytes + 8 * index, sizeof value);
    return value;
  }
  void accumulate(const unsigned char* stripe, const unsigned char* secret) {
    for (std::size_t i = 0; i < xxh3_lane_count; ++i) {
      const std::uint64_t keyed = word(stripe, i) ^ word(secret, i);
      lane[i] += word(stripe, i ^ 1) + (keyed & 0xffffffffU) * (keyed >> 32);
    }
  }
  void scramble(const unsigned char* secret) {
    for (std::size_t i = 0; i < xxh3_lane_count; ++i)
      lane[i] = (lane[i] ^ (lane[i] >> 47) ^ word(secret, i)) * 0x9E3779B1U;
  }
};

#include "absorb.inc"

}  // namespace

void xxh3_absorb_scalar(std::uint64_t* lanes, const unsigned char* input, std::size_t size,
                        const unsigned char* secret) noexcept {
  absorb<ScalarLanes>(lanes, input, size, secret);
}

}  // namespace pccl

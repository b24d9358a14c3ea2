// native/include/pccl/crc32.hpp — the CRC-32 of zlib and Ethernet, for small control frames.
//
// It finds every error of one or two bits and every burst of up to 32, and the coordinator's Python
// has the same one.  Tensors are hashed by XXH3 instead, which is forty times as fast.
//
// Ownership: borrows for the call.
// Threads:   a pure function.
// Errors:    none.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace pccl {

namespace detail {

inline constexpr auto crc32_table = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < table.size(); ++byte) {
    std::uint32_t rest = byte;
    for (int bit = 0; bit < 8; ++bit) rest = rest >> 1 ^ ((rest & 1) != 0 ? 0xEDB88320u : 0u);
    table[byte] = rest;
  }
  return table;
}();

}  // namespace detail

[[nodiscard]] inline std::uint32_t crc32(std::span<const std::byte> bytes) noexcept {
  std::uint32_t crc = ~0u;
  for (const std::byte byte : bytes) {
    crc = crc >> 8 ^ detail::crc32_table[(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xFF];
  }
  return ~crc;
}

}  // namespace pccl

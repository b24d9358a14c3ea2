// native/include/pccl/xxh3.hpp — XXH3, written from its specification.
// Source: the XXH3 algorithm description in the xxHash project's doc/xxhash_spec.md (v0.2.0).
// Ownership: input is borrowed for the call.
// Threads:   pure functions.
// Errors:    none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "pccl/types.hpp"

namespace pccl {

/// XXH3_64bits_withSeed.  Cost: memory speed (AVX2/AVX-512 by run-time dispatch, scalar elsewhere).
std::uint64_t xxh3_64(std::span<const std::byte> data, std::uint64_t seed = 0) noexcept;
/// XXH3_128bits_withSeed; `low` is the canonical low64.  It equals xxh3_64 for some lengths only
/// (1 to 3, and over 240): do not mix them.
Digest xxh3_128(std::span<const std::byte> data, std::uint64_t seed = 0) noexcept;

/// What a step's name is compared by; alike in begin_step() and in an activation.
inline std::uint64_t name_hash(std::string_view name) noexcept {
  return xxh3_64(std::as_bytes(std::span(name.data(), name.size())));
}

}  // namespace pccl

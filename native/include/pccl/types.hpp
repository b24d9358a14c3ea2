// native/include/pccl/types.hpp — the integers and byte strings that name things (DESIGN 4).
// Ownership: plain values.
// Threads:   any.
// Errors:    none.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace pccl {

using Epoch = std::uint32_t;       // one per view and per abort; only grows
using StepId = std::uint64_t;      // a step's number in program order
using Tag = std::uint32_t;         // an operation's number inside its step
using LetterId = std::uint64_t;    // a message that this program sends or receives; 0: none
using Generation = std::uint64_t;  // one per coordinator start
using Incarnation = std::uint64_t; // one per admission of a process

/// Sixteen bytes with value semantics; the parameter keeps the kinds of name apart.
template <class Kind>
struct Bytes16 {
  std::array<std::uint8_t, 16> bytes{};
  friend auto operator<=>(const Bytes16&, const Bytes16&) = default;
};
using PeerId = Bytes16<struct PeerIdKind>;  // hash of the peer's public key
using RunId = Bytes16<struct RunIdKind>;
using Secret = Bytes16<struct SecretKind>;  // proves to a peer that the caller has seen the view

/// 128 bits of XXH3; digests of slices add up, so that order of arrival does not matter.
struct Digest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend auto operator<=>(const Digest&, const Digest&) = default;
  void add(const Digest& other) noexcept {
    const std::uint64_t sum = low + other.low;
    high += other.high + (sum < low ? 1 : 0);
    low = sum;
  }
};

}  // namespace pccl

template <class Kind>
struct std::hash<pccl::Bytes16<Kind>> {
  std::size_t operator()(const pccl::Bytes16<Kind>& value) const noexcept {
    std::size_t word = 0;
    std::memcpy(&word, value.bytes.data(), sizeof word);
    return word;
  }
};

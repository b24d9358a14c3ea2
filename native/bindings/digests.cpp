// native/bindings/digests.cpp — pccl._native: XXH3 of bytes and of blocks of memory.
// Ownership: addresses are the caller's, who keeps them alive for the call.
// Threads:   the GIL is released while blocks are hashed.
// Errors:    ValueError for blocks of no size; MemoryError.
#include "bindings/digests.hpp"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pccl/xxh3.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {
namespace {

/// One digest after the other, of each block of the memory; the last block may be short.
nb::bytes hash_blocks(std::uintptr_t address, std::uint64_t byte_count, std::uint64_t block_bytes) {
  if (block_bytes == 0) throw nb::value_error("block_bytes must not be 0");
  const auto* data = reinterpret_cast<const std::byte*>(address);
  std::vector<Digest> digests(byte_count / block_bytes + (byte_count % block_bytes != 0 ? 1 : 0));
  {
    nb::gil_scoped_release release;
    for (std::uint64_t at = 0, i = 0; at < byte_count; at += block_bytes, ++i) {
      digests[i] = xxh3_128({data + at, std::min(block_bytes, byte_count - at)});
    }
  }
  return nb::bytes(digests.data(), digests.size() * sizeof(Digest));
}

}  // namespace

void bind_digests(nb::module_& module) {
  module.def("xxh3_64", [](const nb::bytes& data, std::uint64_t seed) {
    return xxh3_64({reinterpret_cast<const std::byte*>(data.c_str()), data.size()}, seed);
  }, "data"_a, "seed"_a = 0);
  module.def("xxh3_128_blocks", &hash_blocks, "address"_a, "byte_count"_a, "block_bytes"_a);
  module.def("xxh3_128", [](const nb::bytes& data, std::uint64_t seed) {
    const Digest digest =
        xxh3_128({reinterpret_cast<const std::byte*>(data.c_str()), data.size()}, seed);
    return nb::bytes(&digest, sizeof digest);
  }, "data"_a, "seed"_a = 0);
}

}  // namespace pccl

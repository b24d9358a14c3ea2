// native/fuzz/fuzz_index_code.cpp — a stranger's index code: it is refused, or it is the code of
// places that are in order and inside their blocks.
// Ownership: arrays of exactly the sizes that the decoder is told, so that ASan sees the edges.
// Threads:   one.
// Errors:    abort.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "pccl/sparse.hpp"

using namespace pccl;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 6) return 0;
  const std::uint32_t block = 1 + (data[0] | static_cast<std::uint32_t>(data[1]) << 8);
  const std::uint32_t k = 1 + (data[2] | static_cast<std::uint32_t>(data[3]) << 8) % block;
  const Sparsity sparsity{block, k};
  const std::uint64_t count = (data[4] | static_cast<std::uint64_t>(data[5]) << 8) * 3 % 100'000;
  const std::vector<std::uint8_t> bytes(data + 6, data + size);
  const std::span<const std::byte> coded = std::as_bytes(std::span(bytes));
  std::vector<std::uint16_t> places(sparsity.kept(count));
  if (!decode_indices(coded, count, sparsity, places.data())) return 0;
  if (!are_places(places.data(), count, sparsity)) std::abort();
  std::vector<std::byte> again(index_bytes_max(sparsity, count));
  again.resize(encode_indices(places.data(), count, sparsity, again.data()));
  if (!std::equal(again.begin(), again.end(), coded.begin(), coded.end())) std::abort();
  return 0;
}

// native/fuzz/fuzz_codec.cpp — coded blocks of a stranger: any bytes decode, to the same bits with
// every instruction set, and nothing outside the two arrays is touched.
// Ownership: arrays of exactly the sizes that the decoder is told, so that ASan sees the edges.
// Threads:   one.
// Errors:    traps.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "pccl/kernels.hpp"

using namespace pccl;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return 0;
  const Codec codec{static_cast<CodecKind>(1 + data[0] % 3),
                    static_cast<std::uint8_t>(block_log2_min + data[1] % 8), false};
  const std::size_t count = data[2] | static_cast<std::size_t>(data[3]) << 8;
  std::vector<std::uint8_t> coded(coded_bytes(codec, count));
  std::copy_n(data + 4, std::min(size - 4, coded.size()), coded.begin());
  std::vector<float> reference(count);
  const auto kind = static_cast<std::size_t>(codec.kind);
  scalar_kernels().codecs[kind].decode(reference.data(), coded.data(), count, codec.block());
  const KernelTables available = available_kernels();
  for (std::size_t i = 1; i < available.count; ++i) {
    std::vector<float> other(count);
    available.tables[i]->codecs[kind].decode(other.data(), coded.data(), count, codec.block());
    if (count > 0 && std::memcmp(other.data(), reference.data(), count * sizeof(float)) != 0) {
      std::abort();
    }
  }
  // What was decoded is floats as any: coding them must not trip over them either.
  scalar_kernels().codecs[kind].encode(coded.data(), reference.data(), count, codec.block());
  return 0;
}

// native/fuzz/fuzz_codec.cpp — coded blocks of a stranger: any bytes decode, to the same bits with
// every instruction set and in every element type, and nothing outside the two arrays is touched.
//
// Most arrays are small, since a block of 32 has all that one of 4096 has; some are one of the
// largest blocks and a rest.  The input chooses what is checked beside the tables: other types of
// elements, sums, or that what was decoded comes back, coded again, within codec.hpp's error.
//
// Ownership: arrays of exactly the sizes that the decoder is told, so that ASan sees the edges.
// Threads:   one.
// Errors:    abort.
#include <cmath>

#include "fuzz/pieces.hpp"
#include "pccl/coder.hpp"
#include "pccl/kernels.hpp"

using namespace pccl;
using fuzz::require;

namespace {

constexpr std::size_t count_max = 100;
constexpr std::size_t large_count_max = (1u << block_log2_max) + 100;

using Floats = std::vector<float>;

bool same(const void* a, const void* b, std::size_t bytes) {
  return bytes == 0 || std::memcmp(a, b, bytes) == 0;
}

/// Every table makes the same of it.
void check_decoded(const Codec& codec, const fuzz::Bytes& coded, const Floats& reference) {
  const std::size_t count = reference.size();
  const auto kind = static_cast<std::size_t>(codec.kind);
  static const KernelTables available = available_kernels();
  for (std::size_t i = 1; i < available.count; ++i) {
    Floats other(count);
    available.tables[i]->codecs[kind].decode(other.data(), coded.data(), count, codec.block());
    require(same(other.data(), reference.data(), count * sizeof(float)));
  }
}

void check_wide(const Codec& codec, const fuzz::Bytes& coded, const Floats& reference) {
  const Coder wide(codec, Dtype::f64, ReduceOp::sum);
  std::vector<double> doubles(reference.size());
  wide.decode(reinterpret_cast<std::byte*>(doubles.data()), coded.data(), doubles.size());
  const double* found = doubles.data();
  for (const float wanted : reference) {
    require(*found == static_cast<double>(wanted) || std::isnan(wanted));
    ++found;
  }
}

/// A sum of two of them, in the type that partial sums have, is what it is element by element.
void check_sums(const Codec& codec, Dtype dtype, const fuzz::Bytes& coded,
                const Floats& reference) {
  const Coder coder(codec, dtype, ReduceOp::sum);
  const std::size_t count = reference.size();
  fuzz::Bytes elements(count * size_of(dtype));
  coder.decode(elements.data(), coded.data(), count);
  fuzz::Bytes sum(count * size_of(accumulator_of(dtype, ReduceOp::sum)));
  coder.lift(sum.data(), coded.data(), count, 1.0);
  coder.fold(sum.data(), coded.data(), count, 1.0);
  if (accumulator_of(dtype, ReduceOp::sum) != Dtype::f32) return;
  const std::byte* at = sum.data();
  for (const float one : reference) {
    float found = 0;
    std::memcpy(&found, at, sizeof found);
    at += sizeof found;
    require(found == one + one || std::isnan(one + one));
  }
}

/// What one block says of numbers that it was made of.
void check_block(const Codec& codec, const std::byte* coded, const float* given,
                 const float* found, std::size_t count) {
  float scale = 0;
  std::memcpy(&scale, coded, sizeof scale);
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i) finite = finite && std::isfinite(given[i]);
  require(finite == std::isfinite(scale));
  for (std::size_t i = 0; i < count; ++i) {
    if (!finite) {
      require(std::isnan(found[i]));
      continue;
    }
    const double error = std::abs(static_cast<double>(given[i]) - static_cast<double>(found[i]));
    const double most = codec.kind == CodecKind::fp8
                            ? std::max(std::abs(static_cast<double>(given[i])) * 0x1p-4,
                                       static_cast<double>(scale) * 0x1p-10)
                            : static_cast<double>(scale) / 2;
    require(error <= most * (1 + 0x1p-14));
  }
}

/// What was decoded is floats as any: it can be coded, and comes back almost as it was.
void check_again(const Codec& codec, std::size_t coded_size, const Floats& given) {
  const CodecKernels& kernels = scalar_kernels().codecs[static_cast<std::size_t>(codec.kind)];
  fuzz::Bytes coded(coded_size);
  Floats found(given.size());
  kernels.encode(coded.data(), given.data(), given.size(), codec.block());
  kernels.decode(found.data(), coded.data(), given.size(), codec.block());
  const std::size_t block_coded = coded_bytes(codec, codec.block());
  for (std::size_t at = 0, block = 0; at < given.size(); at += codec.block(), ++block) {
    check_block(codec, coded.data() + block * block_coded, given.data() + at, found.data() + at,
                std::min<std::size_t>(codec.block(), given.size() - at));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Pieces input(data, size);
  const auto which = input.number<std::uint8_t>();
  const auto checks = which / 3 % 4;
  const auto how = input.number<std::uint8_t>();
  const auto some = input.number<std::uint16_t>();
  const Codec codec{static_cast<CodecKind>(1 + which % 3),
                    static_cast<std::uint8_t>(block_log2_min + how % 8), false};
  const std::size_t count = some % (which == 255 ? large_count_max : count_max);
  const auto rest = input.all();
  fuzz::Bytes coded(coded_bytes(codec, count));
  for (std::size_t at = 0; at < coded.size() && !rest.empty(); at += rest.size()) {
    std::memcpy(coded.data() + at, rest.data(), std::min(rest.size(), coded.size() - at));
  }
  Floats reference(count);
  scalar_kernels().codecs[static_cast<std::size_t>(codec.kind)].decode(
      reference.data(), coded.data(), count, codec.block());
  check_decoded(codec, coded, reference);
  if (checks == 0) check_wide(codec, coded, reference);
  const auto dtype = static_cast<Dtype>(how / 8 % floating_dtype_count);
  if (checks == 1) check_sums(codec, dtype, coded, reference);
  if (checks >= 2) check_again(codec, coded.size(), reference);
  return 0;
}

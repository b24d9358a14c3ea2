// native/src/exec/coder.cpp — codecs of any floating-point type, a run of blocks at a time.
// Ownership: see coder.hpp.
// Threads:   pure functions.
// Errors:    none.
#include "pccl/coder.hpp"

#include <algorithm>
#include <cstring>

namespace pccl {
namespace {

/// Elements of a run; whole blocks of every size, 16 KiB as f32.
constexpr std::uint64_t run_count = std::uint64_t{1} << block_log2_max;

std::uint64_t mixed(const CodeSeed& seed) noexcept {
  const std::uint64_t words[3] = {seed.step, seed.tag,
                                  std::uint64_t{seed.rank} << 8 | seed.phase};
  std::uint64_t x = 0;
  for (const std::uint64_t word : words) {  // splitmix64, a word at a time
    x = (x ^ word) + 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    x ^= x >> 31;
  }
  return x;
}

void narrow_f64(float* out, const std::byte* in, std::uint64_t count) noexcept {
  for (std::uint64_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, in + i * sizeof value, sizeof value);
    out[i] = static_cast<float>(value);
  }
}

void widen_f64(std::byte* out, const float* in, std::uint64_t count) noexcept {
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto value = static_cast<double>(in[i]);
    std::memcpy(out + i * sizeof value, &value, sizeof value);
  }
}

}  // namespace

Coder::Coder(Codec codec, Dtype dtype, ReduceOp op) noexcept
    : codec_(codec),
      dtype_(dtype),
      accumulator_(accumulator_of(dtype, op)),
      kernels_(codec_kernels(codec.kind)),
      sums_(kernels(accumulator_, op)),
      widening_(kernels(dtype, ReduceOp::sum)) {}

/// Decodes run by run: take(elements, first, here).
template <class Take>
void Coder::for_runs(const std::byte* in, std::uint64_t count, const Take& take) const noexcept {
  float run[run_count];
  for (std::uint64_t first = 0; first < count; first += run_count) {
    const std::uint64_t here = std::min(run_count, count - first);
    kernels_.decode(run, in, here, codec_.block());
    in += bytes(here);
    take(run, first, here);
  }
}

void Coder::encode_as(Dtype from, std::byte* out, const std::byte* in, std::uint64_t count,
                      std::uint64_t first, const CodeSeed& seed) const noexcept {
  const auto block = codec_.block();
  const std::uint64_t number = first / block;
  const auto code = [&](const void* elements, std::uint64_t at, std::uint64_t here) {
    if (codec_.stochastic) {
      kernels_.encode_stochastic(out, elements, here, block, mixed(seed), number + at / block);
    } else {
      kernels_.encode(out, elements, here, block);
    }
    out += bytes(here);
  };
  if (from == Dtype::f32) return code(in, 0, count);
  float run[run_count];
  for (std::uint64_t at = 0; at < count; at += run_count) {
    const std::uint64_t here = std::min(run_count, count - at);
    const std::byte* elements = in + at * size_of(from);
    if (from == Dtype::f64) {
      narrow_f64(run, elements, here);
    } else {
      widening_.lift(run, elements, here, 1.0);
    }
    code(run, at, here);
  }
}

void Coder::encode(std::byte* out, const std::byte* in, std::uint64_t count, std::uint64_t first,
                   const CodeSeed& seed) const noexcept {
  encode_as(dtype_, out, in, count, first, seed);
}

void Coder::encode_accumulated(std::byte* out, const std::byte* in, std::uint64_t count,
                               std::uint64_t first, const CodeSeed& seed) const noexcept {
  encode_as(accumulator_, out, in, count, first, seed);
}

void Coder::decode(std::byte* out, const std::byte* in, std::uint64_t count) const noexcept {
  if (dtype_ == Dtype::f32) return kernels_.decode(out, in, count, codec_.block());
  for_runs(in, count, [&](const float* run, std::uint64_t first, std::uint64_t here) {
    std::byte* to = out + first * size_of(dtype_);
    if (dtype_ == Dtype::f64) {
      widen_f64(to, run, here);
    } else {
      widening_.lower(to, run, here, 1.0);
    }
  });
}

void Coder::add(std::byte* accumulator, const std::byte* in, std::uint64_t count, double weight,
                bool lifts) const noexcept {
  const auto sum = lifts ? sums_.lift : sums_.fold;
  for_runs(in, count, [&](const float* run, std::uint64_t first, std::uint64_t here) {
    std::byte* to = accumulator + first * size_of(accumulator_);
    if (accumulator_ == Dtype::f32) return sum(to, run, here, weight);
    std::byte wide[run_count * sizeof(double)];
    widen_f64(wide, run, here);
    sum(to, wide, here, weight);
  });
}

void Coder::lift(std::byte* accumulator, const std::byte* in, std::uint64_t count,
                 double weight) const noexcept {
  add(accumulator, in, count, weight, true);
}

void Coder::fold(std::byte* accumulator, const std::byte* in, std::uint64_t count,
                 double weight) const noexcept {
  add(accumulator, in, count, weight, false);
}

}  // namespace pccl

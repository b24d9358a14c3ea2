// native/include/pccl/coder.hpp — a codec between an operation's elements and what travels.
//
// Theory: codecs know f32 only.  What has another type is brought there and back a run at a time,
// in memory that stays in the first-level cache; contributions are decoded into such a run and
// added from there, so that nothing is written that is not kept.  f16 and bf16 become f32 exactly;
// f64 is rounded to it (beyond its range to infinity, so such a block decodes to NaN).
// A run is whole blocks, and so is where a slice begins: a block's number is its place in the
// operation's array, whoever codes it.
//
// Ownership: all memory is the caller's.
// Threads:   pure functions.
// Errors:    none; a Coder of no codec must not be asked to code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pccl/codec.hpp"
#include "pccl/kernels.hpp"

namespace pccl {

/// What stochastic rounding follows from: the operation, whose elements, and which part of it.
struct CodeSeed {
  std::uint64_t step = 0;
  std::uint32_t tag = 0;
  std::uint16_t rank = 0;   // of who codes
  std::uint8_t phase = 0;   // 0 a contribution, 1 a result
};

class Coder {
 public:
  Coder(Codec codec, Dtype dtype, ReduceOp op) noexcept;
  explicit operator bool() const noexcept { return static_cast<bool>(codec_); }
  [[nodiscard]] std::uint64_t bytes(std::uint64_t count) const noexcept {
    return coded_bytes(codec_, count);
  }
  /// What of such dtype and operation can be quantised: sums and averages of floating point.
  [[nodiscard]] static constexpr bool supports(Dtype dtype, ReduceOp op) noexcept {
    return static_cast<std::uint8_t>(dtype) <= static_cast<std::uint8_t>(Dtype::bf16) &&
           (op == ReduceOp::sum || op == ReduceOp::avg);
  }

  /// Codes elements of the dtype; `first` is the place of in[0] in the operation's array.
  void encode(std::byte* out, const std::byte* in, std::uint64_t count, std::uint64_t first,
              const CodeSeed& seed) const noexcept;
  /// The same of the accumulator's type.
  void encode_accumulated(std::byte* out, const std::byte* in, std::uint64_t count,
                          std::uint64_t first, const CodeSeed& seed) const noexcept;
  /// The elements, of the dtype.
  void decode(std::byte* out, const std::byte* in, std::uint64_t count) const noexcept;
  /// Kernels::lift and Kernels::fold of the decoded elements.
  void lift(std::byte* accumulator, const std::byte* in, std::uint64_t count,
            double weight) const noexcept;
  void fold(std::byte* accumulator, const std::byte* in, std::uint64_t count,
            double weight) const noexcept;

 private:
  void encode_as(Dtype from, std::byte* out, const std::byte* in, std::uint64_t count,
                 std::uint64_t first, const CodeSeed& seed) const noexcept;
  template <class Take>
  void for_runs(const std::byte* in, std::uint64_t count, const Take& take) const noexcept;
  void add(std::byte* accumulator, const std::byte* in, std::uint64_t count, double weight,
           bool lifts) const noexcept;

  Codec codec_;
  Dtype dtype_;
  Dtype accumulator_;
  CodecKernels kernels_;
  Kernels sums_;     // of the accumulator's type, with the operation
  Kernels widening_;  // of the dtype, without: f16 and bf16 to f32 and back
};

}  // namespace pccl

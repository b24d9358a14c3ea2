// native/include/pccl/kernels.hpp — the arithmetic of a reduction, chosen at run time.
// Contract: every table gives bit-identical results, because peers with different CPUs must agree.
// Hence element-wise only, no reassociation, -ffp-contract=off; every NaN result is the canonical
// quiet NaN (sign 0, only the top mantissa bit set); min and max return NaN if either side is NaN,
// else `b < a ? b : a` and `a < b ? b : a` (so equal zeros keep the first).  Integers wrap.
// bool: sum and max are "or", prod and min are "and"; there is no average of bool.
// f16/bf16 are widened to f32 and rounded once, to nearest even, by `lower`.
// avg: `lift` and `fold` multiply by the weight in the accumulator's type; `lower` divides by the
// weight sum; an integer result is rounded to nearest even and saturates.
// Ownership: all memory is the caller's, any alignment.
// Threads:   pure functions.
// Errors:    none; `kernels()` of a combination without meaning has null members: see supported().
#pragma once

#include <cstddef>
#include <cstdint>

#include "pccl/codec.hpp"
#include "pccl/dtype.hpp"

namespace pccl {

/// Functions of one (dtype, op).  T = dtype, A = accumulator_of(dtype, op).
struct Kernels {
  /// acc[i] = A(in[i]) [* weight].  `acc == in` is allowed when A is T.
  void (*lift)(void* acc, const void* in, std::size_t count, double weight) noexcept;
  /// acc[i] = acc[i] op A(in[i]) [* weight].
  void (*fold)(void* acc, const void* in, std::size_t count, double weight) noexcept;
  /// dst[i] = a[i] op b[i], all T; null where A is not T, and for avg.  `dst` may be `a` or `b`.
  void (*combine)(void* dst, const void* a, const void* b, std::size_t count) noexcept;
  /// acc[i] = acc[i] op partial[i], both A and both already weighted (avg adds).
  void (*merge)(void* acc, const void* partial, std::size_t count) noexcept;
  /// out[i] = T(acc[i] [/ weight_sum]).  `out == acc` is allowed when A is T.
  void (*lower)(void* out, const void* acc, std::size_t count, double weight_sum) noexcept;
};

/// The floating-point types, whose elements may be no numbers: the first of all.
inline constexpr std::size_t floating_dtype_count = 4;

/// One implementation of all kernels.
struct KernelTable {
  const char* name;  // "scalar", "avx2", "avx512"
  Kernels entries[arithmetic_dtype_count][reduce_op_count];
  CodecKernels codecs[codec_kind_count];  // that of CodecKind::none has null members
  /// How many of the elements, of a floating-point type, are NaN or infinite.
  std::size_t (*count_not_finite[floating_dtype_count])(const void* in, std::size_t count) noexcept;
};

/// The scalar reference that the others are tested against.
const KernelTable& scalar_kernels() noexcept;
/// Every table that this CPU can run, the reference first, the best last.
struct KernelTables { const KernelTable* tables[4]; std::size_t count; };
KernelTables available_kernels() noexcept;
/// The best one here, decided once; PCCL_KERNELS=name overrides (for tests).
const KernelTable& active_kernels() noexcept;

inline const Kernels& kernels(Dtype dtype, ReduceOp op) noexcept {
  static constexpr Kernels none{};
  if (static_cast<std::uint8_t>(dtype) >= arithmetic_dtype_count) return none;
  return active_kernels().entries[static_cast<std::size_t>(dtype)][static_cast<std::size_t>(op)];
}
inline const CodecKernels& codec_kernels(CodecKind kind) noexcept {
  return active_kernels().codecs[static_cast<std::size_t>(kind)];
}
/// False for combinations without meaning: average of bool, anything of what is only moved.
constexpr bool supported(Dtype dtype, ReduceOp op) noexcept {
  return static_cast<std::uint8_t>(dtype) < arithmetic_dtype_count &&
         !(dtype == Dtype::boolean && op == ReduceOp::avg);
}

}  // namespace pccl

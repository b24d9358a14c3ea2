// native/include/pccl/dtype.hpp — element types and reduce operations.
// Ownership: plain values.
// Threads:   any.
// Errors:    a combination that has no meaning has no kernels: see kernels.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pccl {

// Wire numbers: never reused.
enum class Dtype : std::uint8_t {
  f64 = 0, f32 = 1, f16 = 2, bf16 = 3,
  i8 = 4, u8 = 5, i16 = 6, u16 = 7, i32 = 8, u32 = 9, i64 = 10, u64 = 11,
  boolean = 12,
  // No arithmetic here, elements are only moved.
  c64 = 13, c128 = 14, f8_e4m3fn = 15, f8_e5m2 = 16, f8_e4m3fnuz = 17, f8_e5m2fnuz = 18,
  f8_e8m0fnu = 19,
};
inline constexpr std::uint8_t dtype_count = 20;
inline constexpr std::uint8_t arithmetic_dtype_count = 13;  // those before it can be reduced

enum class ReduceOp : std::uint8_t { sum = 0, avg = 1, prod = 2, min = 3, max = 4 };
inline constexpr std::uint8_t reduce_op_count = 5;

constexpr std::size_t size_of(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::c128: return 16;
    case Dtype::c64: case Dtype::f64: case Dtype::i64: case Dtype::u64: return 8;
    case Dtype::f32: case Dtype::i32: case Dtype::u32: return 4;
    case Dtype::f16: case Dtype::bf16: case Dtype::i16: case Dtype::u16: return 2;
    case Dtype::i8: case Dtype::u8: case Dtype::boolean:
    case Dtype::f8_e4m3fn: case Dtype::f8_e5m2: case Dtype::f8_e4m3fnuz:
    case Dtype::f8_e5m2fnuz: case Dtype::f8_e8m0fnu: return 1;
  }
  return 0;
}

/// What partial results are kept in: f16 and bf16 in f32 (one rounding at the end); averages of
/// integers in f64; everything else in its own type.
constexpr Dtype accumulator_of(Dtype dtype, ReduceOp op) noexcept {
  if (dtype == Dtype::f16 || dtype == Dtype::bf16) return Dtype::f32;
  const bool floating = dtype == Dtype::f64 || dtype == Dtype::f32;
  return op == ReduceOp::avg && !floating ? Dtype::f64 : dtype;
}

}  // namespace pccl

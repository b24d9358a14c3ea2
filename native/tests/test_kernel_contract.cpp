// native/tests/test_kernel_contract.cpp — what kernels.hpp promises, of every table.
// Ownership: none.
// Threads:   one.
// Errors:    see check.hpp.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
#include "kernel_testing.hpp"

namespace {

using namespace kernel_testing;

template <class T>
std::vector<T> lifted(const KernelTable& table, Dtype dtype, ReduceOp op, const void* in,
                      std::size_t count, double weight = 1) {
  std::vector<T> acc(count);
  of(table, dtype, op).lift(acc.data(), in, count, weight);
  return acc;
}

/// acc op in, of one element, after the kernel has repeated it over several vectors of any width.
template <class A, class T>
A folded(const KernelTable& table, Dtype dtype, ReduceOp op, A acc, T in, double weight = 1) {
  std::vector<A> accs(77, acc);
  const std::vector<T> ins(77, in);
  of(table, dtype, op).fold(accs.data(), ins.data(), 77, weight);
  for (const A& each : accs) CHECK(std::memcmp(&each, accs.data(), sizeof(A)) == 0);
  return accs[0];
}

template <class T, class A>
T lowered(const KernelTable& table, Dtype dtype, ReduceOp op, A acc, double weight_sum = 1) {
  const std::vector<A> accs(77, acc);
  std::vector<T> outs(77);
  of(table, dtype, op).lower(outs.data(), accs.data(), 77, weight_sum);
  for (const T& each : outs) CHECK(std::memcmp(&each, outs.data(), sizeof(T)) == 0);
  return outs[0];
}

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }
std::uint64_t bits_of(double value) { return std::bit_cast<std::uint64_t>(value); }

/// The value of a 16-bit float, from the definition of the format.
double value_of(std::uint16_t bits, int mantissa, int bias) {
  const int exponent = (bits & 0x7fff) >> mantissa;
  const int fraction = bits & ((1 << mantissa) - 1);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias - mantissa)
                    : std::ldexp(fraction + (1 << mantissa), exponent - bias - mantissa);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

struct HalfFormat { Dtype dtype; int mantissa; int bias; std::uint16_t infinity; };
constexpr HalfFormat half_formats[] = {{Dtype::f16, 10, 15, 0x7c00}, {Dtype::bf16, 7, 127, 0x7f80}};

}  // namespace

TEST(every_nan_result_is_the_canonical_one) {
  const std::uint32_t nans[] = {0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffc00000, ~0U};
  for_each_table([&](const KernelTable& table) {
    for (std::uint8_t i = 0; i < pccl::reduce_op_count; ++i) {
      const ReduceOp op{i};
      for (const std::uint32_t bits : nans) {
        const float nan = std::bit_cast<float>(bits);
        const double wide = std::bit_cast<double>(std::uint64_t{bits} << 32 | 0x7ff0000000000001);
        const auto half = static_cast<std::uint16_t>(bits >> 16 | 1);
        CHECK(bits_of(folded(table, Dtype::f32, op, nan, 1.0F)) == 0x7fc00000);
        CHECK(bits_of(folded(table, Dtype::f32, op, 1.0F, nan)) == 0x7fc00000);
        CHECK(bits_of(folded(table, Dtype::f64, op, wide, 1.0)) == 0x7ff8000000000000);
        CHECK(bits_of(folded(table, Dtype::f64, op, 1.0, wide)) == 0x7ff8000000000000);
        CHECK(bits_of(folded(table, Dtype::f16, op, 1.0F, half)) == 0x7fc00000);
        CHECK(bits_of(folded(table, Dtype::bf16, op, 1.0F, half)) == 0x7fc00000);
        CHECK(bits_of(lifted<float>(table, Dtype::f32, op, &nan, 1)[0]) == 0x7fc00000);
        CHECK(bits_of(lowered<float>(table, Dtype::f32, op, nan)) == 0x7fc00000);
        CHECK(lowered<std::uint16_t>(table, Dtype::f16, op, nan) == 0x7e00);
        CHECK(lowered<std::uint16_t>(table, Dtype::bf16, op, nan) == 0x7fc0);
      }
    }
    constexpr float inf = std::numeric_limits<float>::infinity();
    CHECK(bits_of(folded(table, Dtype::f32, ReduceOp::sum, inf, -inf)) == 0x7fc00000);
    CHECK(bits_of(folded(table, Dtype::f32, ReduceOp::prod, inf, 0.0F)) == 0x7fc00000);
    CHECK(bits_of(lowered<float>(table, Dtype::f32, ReduceOp::avg, 0.0F, 0.0)) == 0x7fc00000);
  });
}

TEST(sums_and_products_of_floats_are_those_of_the_language) {
  const double inputs[] = {0.1, -1.7, 3e38, -3e38, 1e-40, 5e-324, 1e308, 0.0, -0.0, 16777217.0};
  for_each_table([&](const KernelTable& table) {
    const auto check = [&]<class T>(Dtype dtype, T) {
      for (const double x : inputs)
        for (const double y : inputs) {
          const volatile T a = static_cast<T>(x);  // volatile: computed here, not by the compiler
          const volatile T b = static_cast<T>(y);
          const T sum = a + b;
          const T product = a * b;
          const auto fold = [&](ReduceOp op) {
            return bits_of(folded(table, dtype, op, T{a}, T{b}));
          };
          if (sum == sum) CHECK(fold(ReduceOp::sum) == bits_of(sum));
          if (product == product) CHECK(fold(ReduceOp::prod) == bits_of(product));
        }
    };
    check(Dtype::f32, float{});
    check(Dtype::f64, double{});
  });
}

TEST(min_and_max_keep_the_first_of_two_zeros) {
  for_each_table([](const KernelTable& table) {
    for (const ReduceOp op : {ReduceOp::min, ReduceOp::max}) {
      CHECK(bits_of(folded(table, Dtype::f32, op, 0.0F, -0.0F)) == 0);
      CHECK(bits_of(folded(table, Dtype::f32, op, -0.0F, 0.0F)) == 0x80000000);
      CHECK(bits_of(folded(table, Dtype::f64, op, -0.0, 0.0)) == 1ULL << 63);
    }
    CHECK(folded(table, Dtype::f32, ReduceOp::min, 2.0F, -3.0F) == -3.0F);
    CHECK(folded(table, Dtype::f32, ReduceOp::max, 2.0F, -3.0F) == 2.0F);
    CHECK(folded(table, Dtype::i8, ReduceOp::min, std::int8_t{1}, std::int8_t{-1}) == -1);
    CHECK(folded(table, Dtype::u8, ReduceOp::min, std::uint8_t{1}, std::uint8_t{255}) == 1);
    CHECK(folded(table, Dtype::u64, ReduceOp::max, 1ULL, ~0ULL) == ~0ULL);
    CHECK(folded(table, Dtype::i64, ReduceOp::max, 1LL, -1LL) == 1);
  });
}

TEST(integers_wrap) {
  for_each_table([](const KernelTable& table) {
    const auto check = [&]<class T>(Dtype dtype, T) {
      using Wide = __uint128_t;  // wraps too, and keeps the low bits of every product
      Random random{static_cast<std::uint64_t>(dtype)};
      for (int i = 0; i < 200; ++i) {
        const T a = i % 5 == 0 ? std::numeric_limits<T>::min() : static_cast<T>(random.next());
        const T b = i % 3 == 0 ? std::numeric_limits<T>::max() : static_cast<T>(random.next());
        const auto sum = static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
        const auto product = static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
        CHECK(folded(table, dtype, ReduceOp::sum, a, b) == sum);
        CHECK(folded(table, dtype, ReduceOp::prod, a, b) == product);
      }
    };
    check(Dtype::i8, std::int8_t{});
    check(Dtype::u8, std::uint8_t{});
    check(Dtype::i16, std::int16_t{});
    check(Dtype::u16, std::uint16_t{});
    check(Dtype::i32, std::int32_t{});
    check(Dtype::u32, std::uint32_t{});
    check(Dtype::i64, std::int64_t{});
    check(Dtype::u64, std::uint64_t{});
  });
}

TEST(any_nonzero_byte_is_true_and_results_are_zero_or_one) {
  for_each_table([](const KernelTable& table) {
    const auto fold = [&](ReduceOp op, int a, int b) {
      return int{folded(table, Dtype::boolean, op, static_cast<std::uint8_t>(a),
                        static_cast<std::uint8_t>(b))};
    };
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
      CHECK(fold(op, 0, 0) == 0 && fold(op, 0, 128) == 1);
      CHECK(fold(op, 2, 0) == 1 && fold(op, 1, 255) == 1);
    }
    for (const ReduceOp op : {ReduceOp::prod, ReduceOp::min}) {
      CHECK(fold(op, 0, 0) == 0 && fold(op, 0, 128) == 0);
      CHECK(fold(op, 2, 0) == 0 && fold(op, 2, 1) == 1);
    }
    CHECK(lowered<std::uint8_t>(table, Dtype::boolean, ReduceOp::sum, std::uint8_t{64}) == 1);
  });
}

TEST(a_weighted_average_rounds_after_each_operation_in_the_accumulator) {
  for_each_table([](const KernelTable& table) {
    const float inputs[] = {0.1F, 1.7F, -3.3F, 1e-40F, 3e38F};
    const auto w1 = static_cast<float>(0.3);
    const auto w2 = static_cast<float>(1.7);
    const auto sum = static_cast<float>(0.3 + 1.7);
    for (const float a : inputs)
      for (const float b : inputs) {
        const volatile float first = a * w1;  // volatile: no wider and no fused intermediate
        const volatile float second = b * w2;
        const volatile float both = first + second;
        CHECK(lifted<float>(table, Dtype::f32, ReduceOp::avg, &a, 1, 0.3)[0] == first);
        const float acc = folded(table, Dtype::f32, ReduceOp::avg, float{first}, b, 1.7);
        CHECK(acc == both);
        CHECK(lowered<float>(table, Dtype::f32, ReduceOp::avg, acc, 0.3 + 1.7) == both / sum);
      }
  });
}

TEST(an_average_of_integers_rounds_to_even_and_saturates) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  constexpr double two63 = 9223372036854775808.0;
  for_each_table([&](const KernelTable& table) {
    const auto check = [&]<class T>(Dtype dtype, T) {
      const auto mean = [&](double acc, double weights = 1) {
        return lowered<T>(table, dtype, ReduceOp::avg, acc, weights);
      };
      using Limits = std::numeric_limits<T>;
      CHECK(mean(2.5) == 2 && mean(3.5) == 4 && mean(0.5) == 0 && mean(7, 2) == 4);
      CHECK(mean(2.5000000000000004) == 3 && mean(0.49999999999999994) == 0 && mean(nan) == 0);
      CHECK(mean(-2.5) == (Limits::is_signed ? static_cast<T>(-2) : 0));
      CHECK(mean(-3.5) == (Limits::is_signed ? static_cast<T>(-4) : 0));
      CHECK(mean(inf) == Limits::max() && mean(-inf) == Limits::min());
      CHECK(mean(1e30) == Limits::max() && mean(-1e30) == Limits::min());
      const double beyond = std::ldexp(1.0, Limits::digits);
      CHECK(mean(beyond) == Limits::max() && mean(-beyond - 1) == Limits::min());
      const double inside = std::nextafter(beyond, 0.0);
      CHECK(mean(inside) == (sizeof(T) == 8 ? static_cast<T>(inside) : Limits::max()));
      if (Limits::is_signed) CHECK(mean(-beyond) == Limits::min());
    };
    check(Dtype::i8, std::int8_t{});
    check(Dtype::u8, std::uint8_t{});
    check(Dtype::i16, std::int16_t{});
    check(Dtype::u16, std::uint16_t{});
    check(Dtype::i32, std::int32_t{});
    check(Dtype::u32, std::uint32_t{});
    check(Dtype::i64, std::int64_t{});
    check(Dtype::u64, std::uint64_t{});
    CHECK(lowered<std::uint64_t>(table, Dtype::u64, ReduceOp::avg, two63) == 1ULL << 63);
    CHECK(folded(table, Dtype::u64, ReduceOp::avg, 0.0, ~0ULL, 0.5) == two63);
    CHECK(folded(table, Dtype::i64, ReduceOp::avg, 1.0, std::int64_t{-3}, 0.5) == -0.5);
  });
}

TEST(all_65536_halves_widen_exactly_and_come_back) {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  for_each_table([&](const KernelTable& table) {
    for (const HalfFormat& format : half_formats) {
      const std::vector<float> wide =
          lifted<float>(table, format.dtype, ReduceOp::sum, all.data(), all.size());
      std::vector<std::uint16_t> back(all.size());
      of(table, format.dtype, ReduceOp::sum).lower(back.data(), wide.data(), all.size(), 1);
      const auto quiet = static_cast<std::uint16_t>(
          format.infinity | 1U << (format.mantissa - 1));
      for (std::size_t i = 0; i < all.size(); ++i) {
        const auto magnitude = static_cast<std::uint16_t>(i & 0x7fff);
        const bool is_nan = magnitude > format.infinity;
        CHECK(back[i] == (is_nan ? quiet : all[i]));
        if (is_nan) CHECK(bits_of(wide[i]) == 0x7fc00000);
        else if (magnitude == format.infinity) CHECK(std::isinf(wide[i]));
        else CHECK(bits_of(double{wide[i]}) ==
                   bits_of(value_of(all[i], format.mantissa, format.bias)));
      }
    }
  });
}

TEST(narrowing_rounds_to_nearest_even_between_any_two_halves) {
  for_each_table([&](const KernelTable& table) {
    for (const HalfFormat& format : half_formats)
      for (const std::uint16_t sign : {std::uint16_t{0}, std::uint16_t{0x8000}}) {
        std::vector<float> inputs;
        std::vector<std::uint16_t> expected;
        for (std::uint16_t low = 0; low < format.infinity; ++low) {
          // Above the largest number, the next step up is infinity.
          const auto high = static_cast<std::uint16_t>(low + 1);
          const double middle = (value_of(low, format.mantissa, format.bias) +
                                 value_of(high, format.mantissa, format.bias)) / 2;
          const auto tie = static_cast<float>(middle);
          const std::uint16_t even = low % 2 == 0 ? low : high;
          const float below = std::nextafter(tie, 0.0F);
          for (const float value : {below, tie, std::nextafter(tie, INFINITY)}) {
            inputs.push_back(sign != 0 ? -value : value);
            const std::uint16_t nearest = value < tie ? low : value > tie ? high : even;
            expected.push_back(static_cast<std::uint16_t>(sign | nearest));
          }
        }
        std::vector<std::uint16_t> outputs(inputs.size());
        const Kernels& kernels = of(table, format.dtype, ReduceOp::sum);
        kernels.lower(outputs.data(), inputs.data(), inputs.size(), 1);
        CHECK(outputs == expected);
      }
  });
}

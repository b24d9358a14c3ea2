// native/tests/test_kernels.cpp — every kernel table against the scalar one; memory; dispatch.
// Ownership: none.
// Threads:   one.
// Errors:    see check.hpp.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"
#include "kernel_testing.hpp"

namespace {

using namespace kernel_testing;
using Buffer = std::vector<unsigned char>;

constexpr std::size_t lengths[] = {0,  1,  2,  3,  4,  5,  6,   7,   8,   15,  16,  17,   31,  32,
                                   33, 63, 64, 65, 96, 127, 128, 129, 511, 512, 513, 1025, 4099};
constexpr unsigned char untouched = 0xA5;

/// Bit patterns where arithmetic is special, for an element of this dtype.
std::vector<std::uint64_t> special_bits(Dtype dtype) {
  const auto floating = [](int size, int mantissa) {
    const std::uint64_t sign = 1ULL << (8 * size - 1);
    const std::uint64_t infinity = (sign - 1) >> mantissa << mantissa;
    const std::uint64_t one = ((sign >> 2) - 1) >> mantissa << mantissa;
    std::vector<std::uint64_t> bits = {
        0, 1, 3, (1ULL << mantissa) - 1, 1ULL << mantissa, one, one + 1, one - 1,
        infinity - 1, infinity, infinity + 1, infinity | 1ULL << (mantissa - 1), sign - 1};
    const std::size_t positive = bits.size();
    for (std::size_t i = 0; i < positive; ++i) bits.push_back(bits[i] | sign);
    return bits;
  };
  switch (dtype) {
    case Dtype::f64: return floating(8, 52);
    case Dtype::f32: return floating(4, 23);
    case Dtype::f16: return floating(2, 10);
    case Dtype::bf16: return floating(2, 7);
    default: break;
  }
  const std::uint64_t top = 1ULL << (8 * pccl::size_of(dtype) - 1);
  return {0, 1, 2, 3, top - 1, top, top + 1, ~0ULL, ~1ULL, 0x55, top >> 1, 1ULL << 53};
}

/// `shift` bytes that are not part of it, then `count` elements, a third of them special.
Buffer elements(Dtype dtype, std::size_t count, std::size_t shift, std::uint64_t seed) {
  const std::size_t size = pccl::size_of(dtype);
  const std::vector<std::uint64_t> special = special_bits(dtype);
  Random random{seed};
  Buffer buffer(shift + count * size, untouched);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t draw = random.next();
    const std::uint64_t bits = draw % 3 == 0 ? special[random.next() % special.size()] : draw;
    std::memcpy(buffer.data() + shift + i * size, &bits, size);
  }
  return buffer;
}

/// What each function of one table makes of the same elements: whole buffers, margins included.
struct Results {
  Buffer lifted, folded, combined, merged, lowered;
  bool operator==(const Results&) const = default;
};

Results run_all(const Kernels& kernels, Dtype dtype, ReduceOp op, std::size_t count,
                std::size_t shift, double weight) {
  const Dtype wide = pccl::accumulator_of(dtype, op);
  const std::size_t size = pccl::size_of(dtype);
  const std::size_t wide_size = pccl::size_of(wide);
  const Buffer in = elements(dtype, count, shift, count + 1);
  const Buffer other = elements(dtype, count, 3 * shift, count + 2);
  const Buffer partial = elements(wide, count, 3 * shift, count + 3);
  const Buffer held = elements(wide, count, shift, count + 4);
  const auto* const source = in.data() + shift;
  Results results;
  results.lifted.assign(shift + count * wide_size + 64, untouched);
  kernels.lift(results.lifted.data() + shift, source, count, weight);
  results.folded = held;
  kernels.fold(results.folded.data() + shift, source, count, weight);
  results.merged = held;
  kernels.merge(results.merged.data() + shift, partial.data() + 3 * shift, count);
  results.lowered.assign(shift + count * size + 64, untouched);
  kernels.lower(results.lowered.data() + shift, held.data() + shift, count, weight * 3);
  if (kernels.combine != nullptr) {
    results.combined.assign(shift + count * size + 64, untouched);
    kernels.combine(results.combined.data() + shift, source, other.data() + 3 * shift, count);
  }
  return results;
}

}  // namespace

TEST(every_table_gives_the_bits_of_the_scalar_one) {
  for_each_table([](const KernelTable& table) {
    for_each_operation([&](Dtype dtype, ReduceOp op) {
      for (const std::size_t count : lengths)
        for (const std::size_t shift : {0U, 1U})
          for (const double weight : {1.0, 0.3, -1e30, 0.0}) {
            if (op != ReduceOp::avg && weight != 1.0) continue;
            const Results expected =
                run_all(of(pccl::scalar_kernels(), dtype, op), dtype, op, count, shift, weight);
            CHECK(run_all(of(table, dtype, op), dtype, op, count, shift, weight) == expected);
          }
    });
  });
}

TEST(no_kernel_writes_outside_its_output) {
  for_each_table([](const KernelTable& table) {
    for_each_operation([&](Dtype dtype, ReduceOp op) {
      for (const std::size_t count : lengths) {
        const Results results = run_all(of(table, dtype, op), dtype, op, count, 1, 1.0);
        for (const Buffer* buffer : {&results.lifted, &results.lowered, &results.combined}) {
          if (buffer->empty()) continue;
          CHECK(buffer->front() == untouched);
          for (std::size_t i = buffer->size() - 64; i < buffer->size(); ++i)
            CHECK((*buffer)[i] == untouched);
        }
      }
    });
  });
}

TEST(an_output_may_be_its_input_where_the_types_agree) {
  for_each_table([](const KernelTable& table) {
    for_each_operation([&](Dtype dtype, ReduceOp op) {
      if (pccl::accumulator_of(dtype, op) != dtype) return;
      const Kernels& kernels = of(table, dtype, op);
      for (const std::size_t count : lengths) {
        const Buffer a = elements(dtype, count, 1, 1);
        const Buffer b = elements(dtype, count, 1, 2);
        Buffer apart = a;
        Buffer same = a;
        kernels.lift(apart.data() + 1, a.data() + 1, count, 0.3);
        kernels.lift(same.data() + 1, same.data() + 1, count, 0.3);
        CHECK(same == apart);
        same = a;
        kernels.lower(apart.data() + 1, a.data() + 1, count, 0.3);
        kernels.lower(same.data() + 1, same.data() + 1, count, 0.3);
        CHECK(same == apart);
        if (kernels.combine == nullptr) continue;
        Buffer first = a;
        Buffer second = b;
        kernels.combine(apart.data() + 1, a.data() + 1, b.data() + 1, count);
        kernels.combine(first.data() + 1, first.data() + 1, b.data() + 1, count);
        kernels.combine(second.data() + 1, a.data() + 1, second.data() + 1, count);
        CHECK(first == apart && second == apart);
        kernels.combine(apart.data() + 1, a.data() + 1, a.data() + 1, count);
        first = a;
        kernels.combine(first.data() + 1, first.data() + 1, first.data() + 1, count);
        CHECK(first == apart);
      }
    });
  });
}

TEST(functions_are_null_exactly_where_they_have_no_meaning) {
  for_each_table([](const KernelTable& table) {
    for_each_operation([&](Dtype dtype, ReduceOp op) {
      const Kernels& kernels = of(table, dtype, op);
      CHECK(kernels.lift != nullptr && kernels.fold != nullptr);
      CHECK(kernels.merge != nullptr && kernels.lower != nullptr);
      const bool plain = pccl::accumulator_of(dtype, op) == dtype && op != ReduceOp::avg;
      CHECK((kernels.combine != nullptr) == plain);
    });
    const Kernels& none = of(table, Dtype::boolean, ReduceOp::avg);
    CHECK(none.lift == nullptr && none.fold == nullptr && none.combine == nullptr);
    CHECK(none.merge == nullptr && none.lower == nullptr);
  });
}

TEST(the_best_table_is_active_unless_the_environment_names_another) {
  const pccl::KernelTables available = pccl::available_kernels();
  CHECK(available.tables[0] == &pccl::scalar_kernels());
  const KernelTable* expected = available.tables[available.count - 1];
  const char* const named = std::getenv("PCCL_KERNELS");
  for_each_table([&](const KernelTable& table) {
    if (named != nullptr && std::string(named) == table.name) expected = &table;
  });
  CHECK(&pccl::active_kernels() == expected);
}

// native/tests/kernel_testing.hpp — what the tests of the kernels share.
// Ownership: none.
// Threads:   one.
// Errors:    none.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pccl/kernels.hpp"

namespace kernel_testing {

using pccl::Dtype;
using pccl::Kernels;
using pccl::KernelTable;
using pccl::ReduceOp;

template <class F>
void for_each_table(F&& f) {
  const pccl::KernelTables available = pccl::available_kernels();
  for (std::size_t i = 0; i < available.count; ++i) f(*available.tables[i]);
}
template <class F>
void for_each_operation(F&& f) {
  for (std::uint8_t dtype = 0; dtype < pccl::arithmetic_dtype_count; ++dtype)
    for (std::uint8_t op = 0; op < pccl::reduce_op_count; ++op)
      if (pccl::supported(Dtype{dtype}, ReduceOp{op})) f(Dtype{dtype}, ReduceOp{op});
}
inline const Kernels& of(const KernelTable& table, Dtype dtype, ReduceOp op) {
  return table.entries[static_cast<std::size_t>(dtype)][static_cast<std::size_t>(op)];
}

struct Random {
  std::uint64_t state;
  std::uint64_t next() {  // splitmix64
    std::uint64_t x = state += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }
};

}  // namespace kernel_testing

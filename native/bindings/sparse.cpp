// native/bindings/sparse.cpp — pccl._native: the largest elements of blocks.
// Ownership: addresses are the caller's, who keeps them alive for the call.
// Threads:   the GIL is released during the selection.
// Errors:    ValueError for a shape that is not divided into blocks; MemoryError.
#include "bindings/sparse.hpp"

#include <nanobind/nanobind.h>

#include <cstdint>

#include "pccl/top_k.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {
namespace {

void select(std::uintptr_t values, std::size_t rows, std::size_t columns, std::size_t block_rows,
            std::size_t block_columns, std::size_t k, std::uintptr_t positions) {
  const BlockShape shape{rows, columns, block_rows, block_columns};
  if (!shape.sound()) throw nb::value_error("the blocks do not fill the matrix");
  if (k < 1 || k > shape.block_size()) throw nb::value_error("k is at least 1, at most a block");
  const nb::gil_scoped_release release;
  top_k(reinterpret_cast<const float*>(values), shape, k,
        reinterpret_cast<std::uint16_t*>(positions));
}

}  // namespace

void bind_sparse(nb::module_& module) {
  module.def("top_k", &select, "values"_a, "rows"_a, "columns"_a, "block_rows"_a,
             "block_columns"_a, "k"_a, "positions"_a);
}

}  // namespace pccl

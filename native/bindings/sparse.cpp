// native/bindings/sparse.cpp — top-k and the index code for Python.
// Ownership: addresses are the caller's memory.
// Threads:   the GIL is released while elements are looked at.
// Errors:    ValueError; MemoryError.
#include <nanobind/nanobind.h>

#include <new>

#include "bindings/codecs.hpp"
#include "pccl/sparse.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace pccl {
namespace {

Sparsity to_sparsity(std::uint32_t block, std::uint32_t k) {
  const Sparsity sparsity{block, k};
  if (!sparsity.valid()) throw nb::value_error("1 <= k <= block <= 65536");
  return sparsity;
}

void select(std::uintptr_t places, std::uintptr_t in, std::uint64_t count, std::uint32_t block,
            std::uint32_t k) {
  const Sparsity sparsity = to_sparsity(block, k);
  nb::gil_scoped_release release;
  if (!top_k(reinterpret_cast<const void*>(in), count, sparsity,
             reinterpret_cast<std::uint16_t*>(places))) {
    throw std::bad_alloc();
  }
}

std::uint64_t bytes_max(std::uint64_t count, std::uint32_t block, std::uint32_t k) {
  return index_bytes_max(to_sparsity(block, k), count);
}

bool check(std::uintptr_t places, std::uint64_t count, std::uint32_t block, std::uint32_t k) {
  const Sparsity sparsity = to_sparsity(block, k);
  nb::gil_scoped_release release;
  return are_places(reinterpret_cast<const std::uint16_t*>(places), count, sparsity);
}

std::uint64_t encode(std::uintptr_t out, std::uintptr_t places, std::uint64_t count,
                     std::uint32_t block, std::uint32_t k) {
  const Sparsity sparsity = to_sparsity(block, k);
  nb::gil_scoped_release release;
  return encode_indices(reinterpret_cast<const std::uint16_t*>(places), count, sparsity,
                        reinterpret_cast<std::byte*>(out));
}

bool decode(std::uintptr_t places, std::uintptr_t coded, std::uint64_t coded_bytes,
            std::uint64_t count, std::uint32_t block, std::uint32_t k) {
  const Sparsity sparsity = to_sparsity(block, k);
  nb::gil_scoped_release release;
  return decode_indices({reinterpret_cast<const std::byte*>(coded), coded_bytes}, count, sparsity,
                        reinterpret_cast<std::uint16_t*>(places));
}

}  // namespace

void bind_sparse(nb::module_& module) {
  module.def("top_k", &select, "places_address"_a, "in_address"_a, "count"_a, "block"_a, "k"_a);
  module.def("index_bytes_max", &bytes_max, "count"_a, "block"_a, "k"_a);
  module.def("are_places", &check, "places_address"_a, "count"_a, "block"_a, "k"_a);
  module.def("encode_indices", &encode, "out_address"_a, "places_address"_a, "count"_a, "block"_a,
             "k"_a);
  module.def("decode_indices", &decode, "places_address"_a, "coded_address"_a, "coded_bytes"_a,
             "count"_a, "block"_a, "k"_a);
}

}  // namespace pccl

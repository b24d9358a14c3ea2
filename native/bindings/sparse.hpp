// native/bindings/sparse.hpp — what module.cpp calls to bind the selection of elements.
// Ownership: none.
// Threads:   the interpreter's, at import.
// Errors:    none.
#pragma once

#include <nanobind/nanobind.h>

namespace pccl {

void bind_sparse(nanobind::module_& module);

}  // namespace pccl

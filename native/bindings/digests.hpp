// native/bindings/digests.hpp — what module.cpp calls to bind XXH3.
// Ownership: none.
// Threads:   the interpreter's, at import.
// Errors:    none.
#pragma once

#include <nanobind/nanobind.h>

namespace pccl {

void bind_digests(nanobind::module_& module);

}  // namespace pccl

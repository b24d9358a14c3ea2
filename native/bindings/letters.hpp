// native/bindings/letters.hpp — what module.cpp adds to the Engine class for messages.
// Ownership: none.
// Threads:   the import's.
// Errors:    nanobind's.
#pragma once

#include <nanobind/nanobind.h>

#include "pccl/engine.hpp"

namespace pccl {

void bind_letters(nanobind::class_<Engine>& engine);

}  // namespace pccl

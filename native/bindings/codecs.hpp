// native/bindings/codecs.hpp — codecs for Python.
// Ownership: addresses are the caller's memory.
// Threads:   the GIL is released while elements are coded.
// Errors:    ValueError.
#pragma once

#include <nanobind/nanobind.h>

#include "pccl/codec.hpp"

namespace pccl {

/// A codec as it crosses this border: kind | block_log2 << 8 | stochastic << 16.  Throws ValueError
/// for one that does not exist.
Codec to_codec(unsigned packed);
void bind_codecs(nanobind::module_& module);

}  // namespace pccl

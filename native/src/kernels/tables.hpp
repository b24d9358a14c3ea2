// native/src/kernels/tables.hpp — what the instruction-set files offer to the dispatcher.
// Ownership: constants of the program.
// Threads:   any.
// Errors:    none; calling into a table that this CPU cannot run is a crash: see dispatch.cpp.
#pragma once

#include "pccl/kernels.hpp"

namespace pccl {

extern const KernelTable scalar_table;
#if defined(__x86_64__)
extern const KernelTable avx2_table;
extern const KernelTable avx512_table;
#endif

}  // namespace pccl

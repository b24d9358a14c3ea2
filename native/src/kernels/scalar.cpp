// native/src/kernels/scalar.cpp — the reference: the loops for every CPU of the platform.
// Ownership: one constant table.
// Threads:   any.
// Errors:    none; dispatch.cpp decides who may call this.

#include "generic.inc"

namespace pccl {
constinit const KernelTable scalar_table = make_table("scalar");
}  // namespace pccl

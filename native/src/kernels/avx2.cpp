// native/src/kernels/avx2.cpp — the loops for x86-64 with AVX2 and F16C.
// Ownership: one constant table.
// Threads:   any.
// Errors:    none; dispatch.cpp decides who may call this.

#if !defined(__AVX2__) || !defined(__F16C__) || defined(__FMA__)
#error "compile this file with -mavx2 -mf16c and without -mfma"
#endif

#include "generic.inc"

namespace pccl {
constinit const KernelTable avx2_table = make_table("avx2");
}  // namespace pccl

// native/src/kernels/avx512.cpp — the loops for x86-64 with AVX-512 F, BW, VL and DQ.
// Ownership: one constant table.
// Threads:   any.
// Errors:    none; dispatch.cpp decides who may call this.

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__)
#error "compile this file with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mf16c"
#endif

#include "generic.inc"

namespace pccl {
constinit const KernelTable avx512_table = make_table("avx512");
}  // namespace pccl
